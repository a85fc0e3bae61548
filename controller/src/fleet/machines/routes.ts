/** HTTP of capacity: how regions grow, what they are expected to need, and the machines that this comes to. */
import { createRoute, z } from '@hono/zod-openapi';
import { ADDRESS_PARTS } from '@katafract/shared/addresses';
import { Haven } from '@katafract/shared/haven';
import { NodeId, RegionId } from '@katafract/shared/units';
import type { MiddlewareHandler } from 'hono';
import {
  type Api,
  type AppEnv,
  decodeCursor,
  IdempotencyKeyHeader,
  json,
  jsonBody,
  operatorOf,
  PageQuery,
  page,
  problems,
  security,
} from '../../platform/api.ts';
import { ALERTS, type Assessment } from './capacity.ts';
import { DECIDE, type Machines } from './machines.ts';
import { PROVIDERS } from './provider.ts';
import { changeRegion, putRegion, type RegionDeps, readRegions } from './regions.ts';
import type { MachineRow } from './store.ts';
import { MACHINE_STATES } from './tables.ts';

export interface MachineRoutesDeps extends Pick<RegionDeps, 'db' | 'audit' | 'fleet'> {
  readonly machines: Machines;
  readonly wakeJob: (name: string) => void;
  readonly requireOperator: MiddlewareHandler<AppEnv>;
}

/** Control characters and lone surrogates: JSON may carry them, Postgres takes neither. */
const UNPRINTABLE = /[\p{Cc}\p{Cs}]/u;
const Printable = z.string().refine((text) => !UNPRINTABLE.test(text), 'must be printable text');
/** Of a provider: a name such as fsn1 or cpx21. */
const Word = z
  .string()
  .regex(/^[A-Za-z0-9 ._-]{0,64}$/, 'up to 64 letters, digits, blanks, dots and hyphens');
const Growth = z.strictObject({
  provider: z.enum(PROVIDERS),
  /** In the provider's own words: where, and what. */
  location: Word,
  size: Word,
  /** Peers one such machine may carry. */
  capacity: z.number().int().min(1).max(1_000_000),
  bandwidthMbit: z.number().int().min(1).max(10_000_000).nullable().default(null),
  /** WireGuard interfaces of each, on as many ports; one where absent. */
  tunnels: z.number().int().min(1).max(ADDRESS_PARTS).optional(),
  /** Exits beyond which the region does not grow, those on the way counted. */
  maxExits: z.number().int().min(0).max(1000),
});
const TimeZone = z
  .string()
  .max(64)
  .regex(/^[A-Za-z][A-Za-z0-9_+/-]*$/, 'an IANA time zone')
  .refine(isTimeZone, 'an IANA time zone, such as Europe/Berlin');
const HavenInput = z.strictObject({
  ...Haven.shape,
  blocklists: Haven.shape.blocklists.default([]),
  rules: Haven.shape.rules.default([]),
  queriesPerSecond: Haven.shape.queriesPerSecond.default(50),
  statistics: Haven.shape.statistics.default(false),
  probe: Haven.shape.probe.default('example.com'),
});
const Settings = z.strictObject({
  timeZone: TimeZone.nullable().optional(),
  /** Exits that must stay well while others are updated or rebooted, and below which the region grows. */
  minExits: z.number().int().min(0).max(1000).optional(),
  growth: Growth.nullable().optional(),
  /** How its exits filter DNS; null: they do not. */
  haven: HavenInput.nullable().optional(),
  /** SSH of its exits is for the mesh alone, and root logs in from nowhere else. */
  sshFromMesh: z.boolean().optional(),
});
const RegionInput = Settings.extend({
  id: RegionId,
  name: Printable.min(1).max(64),
  country: z.string().regex(/^[A-Z]{2}$/, 'an ISO 3166-1 alpha-2 code'),
  latitude: z.number().min(-90).max(90),
  longitude: z.number().min(-180).max(180),
});
const RegionChange = RegionInput.omit({ id: true }).partial();
const RegionView = RegionInput.required();

const CapacityView = z.object({
  region: RegionId,
  /** The numbers below in one sentence. */
  explained: z.string(),
  minExits: z.number().int(),
  growth: Growth.nullable(),
  /** Exits that serve and are not down. */
  exits: z.number().int(),
  /** What they carry, primaries and standbys alike, and may carry. */
  peers: z.number().int(),
  room: z.number().int(),
  /** Machines on their way, and the room they will bring. */
  coming: z.number().int(),
  comingRoom: z.number().int(),
  used: z.number(),
  /** Peers an hour, over the last two. */
  trend: z.number(),
  /** By the time that a machine asked for now would serve. */
  expected: z.number().int(),
  expectedUsed: z.number(),
  headroom: z.number().int(),
  /** What would be done about it at this moment. */
  decision: z.object({
    do: z.enum(['none', 'grow', 'replace', 'shrink', 'alert']),
    reason: z.string(),
    /** Of an alert: why the region does not get by itself what it needs. */
    code: z.enum(ALERTS).nullable(),
  }),
});
const MachineView = z.object({
  id: z.uuid(),
  region: RegionId,
  /** The node that it becomes. */
  node: NodeId,
  provider: z.enum(PROVIDERS),
  state: z.enum(MACHINE_STATES),
  reason: z.string(),
  wantedBy: z.string(),
  replaces: NodeId.nullable(),
  /** The provider's own id. */
  ref: z.string().nullable(),
  address: z.string().nullable(),
  /** Of the step under way that failed, and the last failure's code. */
  tries: z.number().int(),
  problem: z.string().nullable(),
  since: z.iso.datetime(),
  wantedAt: z.iso.datetime(),
  endedAt: z.iso.datetime().nullable(),
});

/** Names that the runtime's own database of time zones knows. */
function isTimeZone(name: string): boolean {
  try {
    new Intl.DateTimeFormat('en', { timeZone: name });
    return true;
  } catch {
    return false; // a RangeError is the answer
  }
}

const byId = z.object({ id: z.uuid() });
const Position = z.object({ at: z.iso.datetime(), id: z.uuid() });

const iso = (at: string) => new Date(at).toISOString();
function machineView({ growth: _, ...row }: MachineRow): z.infer<typeof MachineView> {
  const times = { since: iso(row.since), wantedAt: iso(row.wantedAt) };
  return { ...row, ...times, endedAt: row.endedAt === null ? null : iso(row.endedAt) };
}

function decisionView(decision: Assessment['decision']): z.infer<typeof CapacityView>['decision'] {
  const reason = decision.do === 'none' ? decision.why : decision.reason;
  return { do: decision.do, reason, code: decision.do === 'alert' ? decision.code : null };
}

const operator = (deps: MachineRoutesDeps) => ({
  tags: ['Operators'],
  security: security.operator,
  middleware: [deps.requireOperator],
});

function regionRoutes(api: Api, deps: MachineRoutesDeps): void {
  const common = operator(deps);
  const regions: RegionDeps = {
    ...deps,
    automatic: (provider) => deps.machines.automatic(provider),
    onChange: () => deps.wakeJob(DECIDE),
  };
  const list = createRoute({
    ...common,
    method: 'get',
    path: '/v1/admin/regions',
    summary: 'List regions as they are set up',
    responses: { 200: json(z.object({ items: z.array(RegionView) }), 'Every region'), ...problems(401) },
  });
  api.openapi(list, async (c) => c.json({ items: await readRegions(regions) }, 200));
  const add = createRoute({
    ...common,
    method: 'post',
    path: '/v1/admin/regions',
    summary: 'Add a region, or change its name and place',
    description: 'How it grows, its minimum and its time zone stay as they were where they are absent.',
    request: { body: jsonBody(RegionInput) },
    responses: { 201: json(RegionInput, 'The region'), ...problems(400, 401, 413, 422) },
  });
  api.openapi(add, async (c) => {
    const { timeZone, minExits, growth, haven, sshFromMesh, ...place } = c.req.valid('json');
    const settings = {
      ...(timeZone === undefined ? {} : { timeZone }),
      ...(minExits === undefined ? {} : { minExits }),
      ...(growth === undefined ? {} : { growth }),
      ...(haven === undefined ? {} : { haven }),
      ...(sshFromMesh === undefined ? {} : { sshFromMesh }),
    };
    await putRegion(regions, { ...place, ...settings }, operatorOf(c).name);
    return c.json(c.req.valid('json'), 201);
  });
  const change = createRoute({
    ...common,
    method: 'patch',
    path: '/v1/admin/regions/{id}',
    summary: 'Change a region: how it grows, how its exits filter DNS, its time zone, its name and place',
    request: { params: z.object({ id: RegionId }), body: jsonBody(RegionChange) },
    responses: { 200: json(RegionView, 'The region'), ...problems(400, 401, 404, 413, 422) },
  });
  api.openapi(change, async (c) => {
    const { id } = c.req.valid('param');
    return c.json(await changeRegion(regions, id, c.req.valid('json'), operatorOf(c).name), 200);
  });
}

function capacityRoute(api: Api, deps: MachineRoutesDeps): void {
  const route = createRoute({
    ...operator(deps),
    method: 'get',
    path: '/v1/admin/capacity',
    summary: 'What every region is expected to need, explained',
    responses: {
      200: json(z.object({ items: z.array(CapacityView) }), 'The fullest first'),
      ...problems(401),
    },
  });
  api.openapi(route, async (c) => {
    const items = (await deps.machines.assess()).map(({ facts: { minExits, growth }, assessment }) => ({
      ...assessment.forecast,
      minExits,
      growth,
      decision: decisionView(assessment.decision),
    }));
    return c.json({ items }, 200);
  });
}

function wishRoutes(api: Api, deps: MachineRoutesDeps): void {
  const common = operator(deps);
  const wish = createRoute({
    ...common,
    method: 'post',
    path: '/v1/admin/machines',
    summary: 'Ask for one more machine in a region',
    description:
      'As the region grows; where it does not grow by itself, a person sets the machine up: see `cloud-init`.',
    request: { headers: IdempotencyKeyHeader, body: jsonBody(z.strictObject({ region: RegionId })) },
    responses: { 201: json(MachineView, 'The machine'), ...problems(400, 401, 413, 422) },
  });
  api.openapi(wish, async (c) => {
    const idempotencyKey = c.req.valid('header')['idempotency-key'];
    const asked = { operator: operatorOf(c).name, idempotencyKey };
    return c.json(machineView(await deps.machines.wish(c.req.valid('json'), asked)), 201);
  });
  const replace = createRoute({
    ...common,
    method: 'post',
    path: '/v1/admin/nodes/{id}/replace',
    summary: 'Put a new machine in the place of a node',
    description:
      'Once it serves, the old node is drained and retired, and the machine behind it given back where it came ' +
      'from a provider. Whether the old node still lives makes no difference.',
    request: { params: z.object({ id: NodeId }), headers: IdempotencyKeyHeader },
    responses: {
      201: json(MachineView, 'The machine that takes its place'),
      ...problems(400, 401, 404, 409, 422),
    },
  });
  api.openapi(replace, async (c) => {
    const idempotencyKey = c.req.valid('header')['idempotency-key'];
    const asked = { operator: operatorOf(c).name, idempotencyKey };
    return c.json(machineView(await deps.machines.wish({ replaces: c.req.valid('param').id }, asked)), 201);
  });
}

function lifeRoutes(api: Api, deps: MachineRoutesDeps): void {
  const common = operator(deps);
  const list = createRoute({
    ...common,
    method: 'get',
    path: '/v1/admin/machines',
    summary: 'List machines, newest first',
    request: {
      query: PageQuery.extend({
        /** Only those that are not over. */
        open: z.enum(['true', 'false']).default('false'),
      }),
    },
    responses: {
      200: json(z.object({ items: z.array(MachineView), next: z.string().nullable() }), 'A page of machines'),
      ...problems(400, 401),
    },
  });
  api.openapi(list, async (c) => {
    const { open, limit, cursor } = c.req.valid('query');
    const rows = await deps.machines.list({
      open: open === 'true',
      limit,
      after: decodeCursor(cursor, Position),
    });
    const { items, next } = page(rows, limit, ({ wantedAt, id }) => ({ at: iso(wantedAt), id }));
    return c.json({ items: items.map(machineView), next }, 200);
  });
  const giveBack = createRoute({
    ...common,
    method: 'delete',
    path: '/v1/admin/machines/{id}',
    summary: 'Give a machine back, its node drained first',
    request: { params: byId },
    responses: { 200: json(MachineView, 'The machine, on its way out'), ...problems(400, 401, 404) },
  });
  api.openapi(giveBack, async (c) =>
    c.json(machineView(await deps.machines.giveBack(c.req.valid('param').id, operatorOf(c).name)), 200),
  );
  const cloudInit = createRoute({
    ...common,
    method: 'get',
    path: '/v1/admin/machines/{id}/cloud-init',
    summary: 'What to give a host so that it becomes this machine, which a person sets up',
    description:
      'A secret: there is a one-time join token in it, good for an hour. Reading it again makes another token, and ' +
      'the one before void.',
    request: { params: byId },
    responses: {
      200: {
        description: 'A cloud-config document',
        content: { 'text/cloud-config': { schema: z.string() } },
      },
      ...problems(400, 401, 404, 409),
    },
  });
  api.openapi(cloudInit, async (c) => {
    const text = await deps.machines.cloudInit(c.req.valid('param').id, operatorOf(c).name);
    return c.body(text, 200, { 'Content-Type': 'text/cloud-config' });
  });
}

export function machineRoutes(api: Api, deps: MachineRoutesDeps): void {
  regionRoutes(api, deps);
  capacityRoute(api, deps);
  wishRoutes(api, deps);
  lifeRoutes(api, deps);
}
