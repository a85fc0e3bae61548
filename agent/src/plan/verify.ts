/**
 * Holds what was seen of a host against the table of what an exit enforces, pure: one finding a rule, policy, setting and
 * jump. Unlike a plan it puts nothing right; it says what is wrong, and what an attacker could do with that.
 */

import type { NodeConfig } from '@katafract/shared/desired';
import type { Family, HavenView } from '../ports.ts';
import type { UpkeepFacts } from '../upkeep/plan.ts';
import { FAMILIES, type RuleContext, ruleContext } from './context.ts';
import { chainOf, jumpsRight, parseSaved, type SavedTable, wantedRules } from './firewall.ts';
import { type HostObservation, type HostWish, settingContext } from './host.ts';
import { PLACES, type Place } from './rules.ts';
import { isSet } from './sysctls.ts';
import type { Table } from './table.ts';
import { tunnelNames } from './tunnels.ts';

export interface Finding {
  /** Row of the table, or what else was looked at. */
  readonly id: string;
  /** null: of both at once. */
  readonly family: Family | null;
  readonly holds: boolean;
  /** What should be, as the kernel is told it. */
  readonly expected: string;
  /** What is; absent where that is as expected, or nothing. */
  readonly found?: string;
  /** What is possible without it. */
  readonly attack: string;
}

/** Everything that is to hold of an exit, in the order of the table. @param first name of its first tunnel interface */
export function verifyHost(first: string, wish: HostWish, seen: HostObservation): Finding[] {
  return [
    ...FAMILIES.flatMap((family) => {
      const context = ruleContext(family, wish.config, seen, wish.choices, wish.gates);
      return verifyFirewall(seen.firewall[family], context, wish.table);
    }),
    ...verifySettings(first, wish, seen),
    ...verifyTunnels(tunnelNames(first, wish.config), seen),
  ];
}

function verifyTunnels(names: readonly string[], { links }: HostObservation): Finding[] {
  const others = [...links.keys()].filter((name) => !names.includes(name));
  return [
    ...names.map((name) => ({
      id: 'tunnel',
      family: null,
      holds: links.get(name)?.up === true,
      expected: `${name} is up`,
      attack: 'none: there is no service without it',
    })),
    // such as one that the machine had as another node, of which nobody keeps the peers
    {
      id: 'other-tunnels',
      family: null,
      holds: others.length === 0,
      expected: `no tunnel interface but ${names.join(', ')}`,
      ...(others.length > 0 ? { found: others.join(', ') } : {}),
      attack: 'whoever is a peer there gets out by this exit, whatever the controller wants',
    },
  ];
}

/** What the DNS filter was found to be; nothing where none is wanted. @param seen null where it was not looked at */
export function verifyHaven({ haven }: NodeConfig, seen: HavenView | null): Finding[] {
  if (!haven) return [];
  return (seen?.findings ?? []).map(({ id, holds, attack }) => ({
    id: 'haven',
    family: null,
    holds,
    expected: `DNS filter: ${id}`,
    attack,
  }));
}

/** What the root helper has done of what it was asked for: the filter's file and service, and the restriction of SSH. */
export function verifyRequests(config: NodeConfig, requests: UpkeepFacts['requests']): Finding[] {
  const wanted = [
    config.haven && (['haven', 'the DNS filter is set up', 'none: clients get no names'] as const),
    config.sshFromMesh &&
      (['ssh', 'SSH is for the mesh alone', 'anybody on the internet tries keys and passwords'] as const),
  ].filter((each) => each !== undefined);
  return wanted.map(([name, expected, attack]) => {
    const { pending, result } = requests[name];
    const found = pending !== null ? 'not taken up yet' : (result?.code ?? 'never asked for');
    const holds = pending === null && result?.outcome === 'done';
    return { id: 'helper', family: null, holds, expected, ...(holds ? {} : { found }), attack };
  });
}

function verifyFirewall(saved: string, context: RuleContext, table: Table): Finding[] {
  const tables = parseSaved(saved);
  return PLACES.flatMap(({ table: name, parent }) => {
    const place = `${name} ${parent}` as Place;
    const seen = tables.get(name);
    return [
      ...verifyJump(seen, place, parent, context.family),
      ...verifyChain(seen, place, parent, context, table),
      ...verifyPolicies(seen, place, parent, context.family, table),
    ];
  });
}

function verifyJump(seen: SavedTable | undefined, place: Place, parent: string, family: Family): Finding[] {
  const first = seen?.first.get(parent);
  return [
    {
      id: 'jump',
      family,
      holds: jumpsRight(seen, parent),
      expected: `${place}: -j ${chainOf(parent)}, once and before everything else`,
      ...(first === undefined ? {} : { found: first }),
      attack: 'whatever stands before it, or all of what follows it here, is decided by somebody else',
    },
  ];
}

function verifyChain(
  seen: SavedTable | undefined,
  place: Place,
  parent: string,
  context: RuleContext,
  table: Table,
): Finding[] {
  const { family } = context;
  const own = seen?.own.get(chainOf(parent)) ?? [];
  const wanted = wantedRules(table, place, context);
  const findings = wanted.map(({ row, rule }) => ({
    id: row,
    family,
    holds: own.includes(rule),
    expected: `${place}: ${rule}`,
    attack: attackOf(table, row),
  }));
  const rules = wanted.map(({ rule }) => rule);
  const strange = own.filter((rule) => !rules.includes(rule));
  const inOrder =
    own.filter((rule) => rules.includes(rule)).join('\n') ===
    rules.filter((rule) => own.includes(rule)).join('\n');
  const order: Finding = {
    id: 'chain',
    family,
    holds: strange.length === 0 && inOrder,
    expected: `${place}: these rules and no others, in this order`,
    ...(strange.length > 0 ? { found: strange.join('; ') } : {}),
    attack: 'a rule that is not ours, or out of its place, decides before the ones that should',
  };
  return [...findings, order];
}

function attackOf(table: Table, id: string): string {
  return table.rules.find((row) => row.id === id)?.attack ?? '';
}

function verifyPolicies(
  seen: SavedTable | undefined,
  place: Place,
  parent: string,
  family: Family,
  table: Table,
): Finding[] {
  return table.policies
    .filter((row) => row.place === place && (row.family ?? family) === family)
    .map(({ id, policy, attack }) => {
      const found = seen?.policies.get(parent) ?? 'ACCEPT';
      return { id, family, holds: found === policy, expected: `${place}: policy ${policy}`, found, attack };
    });
}

function verifySettings(first: string, { config, table }: HostWish, seen: HostObservation): Finding[] {
  const context = settingContext(first, config, seen);
  return [...table.settings, ...table.forwarding].flatMap(({ id, family = null, attack, settings }) =>
    settings(context).flatMap((setting) => {
      const found = seen.sysctls.get(setting.path) ?? null;
      if (found === null && setting.optional) return [];
      const holds = found !== null && isSet(setting, found);
      const verb = setting.list ? 'has' : '=';
      return [
        {
          id,
          family,
          holds,
          expected: `${setting.path} ${verb} ${setting.value}`,
          found: found ?? 'nothing',
          attack,
        },
      ];
    }),
  );
}

/** One line a finding; those that fail say what is there instead, and what that allows. */
export function verifyText(findings: readonly Finding[]): string {
  const lines = findings.flatMap(({ id, family, holds, expected, found, attack }) => {
    const of = family === null ? '' : `IPv${family}`;
    const line = `${holds ? 'pass' : 'FAIL'}  ${id.padEnd(24)} ${of.padEnd(4)}  ${expected}`;
    if (holds) return [line];
    const instead = found === undefined ? [] : [`      found:   ${found}`];
    return [line, ...instead, `      without: ${attack}`];
  });
  const failing = findings.filter(({ holds }) => !holds).length;
  const sum = failing === 0 ? `all ${findings.length} hold` : `${failing} of ${findings.length} do not hold`;
  return [...lines, sum].join('\n');
}
