/** How regions are set up: name, place, and how they grow. */
import { KatafractError } from '@katafract/shared/errors';
import type { Haven } from '@katafract/shared/haven';
import type { RegionId } from '@katafract/shared/units';
import { type Audit, actorOf } from '../../audit/audit.ts';
import type { Database, Sql } from '../../platform/db.ts';
import type { Fleet } from '../fleet.ts';
import type { Growth, ProviderName } from './provider.ts';

export interface RegionSettings {
  /** IANA name of its time zone; null: by its longitude. */
  timeZone: string | null;
  /** Exits that must stay well while others are updated or rebooted, and below which it grows. */
  minExits: number;
  /** How it grows by itself; null: an operator is told instead. */
  growth: Growth | null;
  /** How its exits filter DNS; null: they do not. */
  haven: Haven | null;
  /** SSH of its exits is for the mesh alone. */
  sshFromMesh: boolean;
}

export interface RegionView extends RegionSettings {
  id: RegionId;
  name: string;
  country: string;
  latitude: number;
  longitude: number;
}

type Place = Omit<RegionView, keyof RegionSettings>;
type Change = { [Key in keyof (Omit<Place, 'id'> & RegionSettings)]?: RegionView[Key] | undefined };

export interface RegionDeps {
  readonly db: Database;
  readonly audit: Audit;
  readonly fleet: Fleet;
  /** Whether a provider makes machines by itself; null where it is off. */
  readonly automatic: (provider: ProviderName) => boolean | null;
  /** What changes demand was changed. */
  readonly onChange: () => void;
}

const columns = (sql: Sql) => sql`
  id, name, country, latitude, longitude, time_zone as "timeZone", min_exits as "minExits", growth, haven,
  ssh_from_mesh as "sshFromMesh"`;

export function readRegions({ db }: RegionDeps): Promise<RegionView[]> {
  return db.sql<RegionView[]>`
    select ${columns(db.sql)} from regions order by id`;
}

/**
 * Adds a region, or changes one that is there: what is absent stays as it was.
 * @throws KatafractError `provider_off` (422)
 */
export async function putRegion(
  deps: RegionDeps,
  region: Place & Partial<RegionSettings>,
  operator: string,
): Promise<void> {
  checkProvider(deps, region.growth);
  const { id, name, country, latitude, longitude } = region;
  await deps.db.transaction(async (tx) => {
    await tx.sql`
      insert into regions (id, name, country, latitude, longitude)
      values (${id}, ${name}, ${country}, ${latitude}, ${longitude})
      on conflict (id) do update set name = excluded.name, country = excluded.country,
        latitude = excluded.latitude, longitude = excluded.longitude`;
    await change(deps, tx, id, region, operator);
  });
  await announce(deps);
}

/** @throws KatafractError `region_unknown` (404), `provider_off` (422) */
export async function changeRegion(
  deps: RegionDeps,
  id: RegionId,
  wanted: Change,
  operator: string,
): Promise<RegionView> {
  checkProvider(deps, wanted.growth);
  const view = await deps.db.transaction((tx) => change(deps, tx, id, wanted, operator));
  await announce(deps);
  return view;
}

async function change(
  { audit }: RegionDeps,
  tx: Parameters<Audit['record']>[0],
  id: RegionId,
  wanted: Change,
  operator: string,
): Promise<RegionView> {
  const { sql } = tx;
  const { name, country, latitude, longitude, timeZone, minExits, growth, haven, sshFromMesh } = wanted;
  const [row] = await sql<RegionView[]>`
    update regions set
      name = coalesce(${name ?? null}, name), country = coalesce(${country ?? null}, country),
      latitude = coalesce(${latitude ?? null}, latitude), longitude = coalesce(${longitude ?? null}, longitude),
      min_exits = coalesce(${minExits ?? null}, min_exits),
      time_zone = case when ${timeZone !== undefined} then ${timeZone ?? null} else time_zone end,
      growth = case when ${growth !== undefined} then ${growth ? sql.json({ ...growth }) : null}::jsonb else growth end,
      haven = case when ${haven !== undefined} then ${haven ? sql.json({ ...haven }) : null}::jsonb else haven end,
      ssh_from_mesh = coalesce(${sshFromMesh ?? null}, ssh_from_mesh)
    where id = ${id}
    returning ${columns(sql)}`;
  if (!row) throw new KatafractError('region_unknown', `no such region: ${id}`, { status: 404 });
  // what its exits are told of themselves is theirs to hold, in order with everything else
  if (haven !== undefined || sshFromMesh !== undefined) await reconfigure(sql, id);
  await audit.record(tx, [
    { actor: actorOf(operator), action: 'region.changed', subject: `region:${id}`, detail: { ...row } },
  ]);
  return row;
}

/** Raises the generation of every node of a region, whose config it is a part of. */
async function reconfigure(sql: Sql, region: RegionId): Promise<void> {
  await sql`
    with exits as (
      select id from nodes where region_id = ${region} and state <> 'retired' order by id for update
    )
    update nodes n set generation = n.generation + 1, config_generation = n.generation + 1
    from exits where n.id = exits.id`;
}

function checkProvider({ automatic }: RegionDeps, growth: Growth | null | undefined): void {
  if (!growth || automatic(growth.provider) !== null) return;
  const message = `the provider ${growth.provider} is not configured`;
  throw new KatafractError('provider_off', message, { status: 422 });
}

async function announce({ fleet, onChange }: RegionDeps): Promise<void> {
  await fleet.changed();
  onChange();
}
