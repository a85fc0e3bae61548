/**
 * Compares the firewall with the rule table and writes the text that puts it right, pure. One text is one atomic step a
 * table: the old rules hold until the new ones do, and chains of others are never named but for the one jump in each,
 * and the policy of FORWARD.
 */
import { createHash } from 'node:crypto';
import type { RuleContext } from './context.ts';
import { CHAIN_PREFIX, CHECKED, PLACES, type Place } from './rules.ts';
import type { Table } from './table.ts';

export interface SavedTable {
  /** Own chains and their rules (the text after `-A CHAIN `). */
  readonly own: Map<string, string[]>;
  /** Rules of other chains that jump to one of ours: which one, from where, at which position (from 1). */
  readonly jumps: { chain: string; parent: string; position: number; rule: string }[];
  /** Of built-in chains. */
  readonly policies: Map<string, string>;
  /** The first rule of other chains. */
  readonly first: Map<string, string>;
}

const emptyTable = (): SavedTable => ({
  own: new Map(),
  jumps: [],
  policies: new Map(),
  first: new Map(),
});

/** The chain of ours that hooks into a built-in one. */
export const chainOf = (parent: string) => `${CHAIN_PREFIX}${parent}`;

/** Reads what iptables-save printed, as far as it concerns us. */
export function parseSaved(text: string): Map<string, SavedTable> {
  const tables = new Map<string, SavedTable>();
  let table = emptyTable();
  let lengths = new Map<string, number>();
  for (const line of text.split('\n')) {
    if (line.startsWith('*')) {
      table = emptyTable();
      lengths = new Map();
      tables.set(line.slice(1), table);
    } else if (line.startsWith(':')) {
      const [chain = '', policy = ''] = line.slice(1).split(' ');
      if (chain.startsWith(CHAIN_PREFIX)) table.own.set(chain, []);
      else if (policy !== '-') table.policies.set(chain, policy);
    } else if (line.startsWith('-A ')) {
      addRule(table, lengths, line);
    }
  }
  return tables;
}

function addRule(table: SavedTable, lengths: Map<string, number>, line: string): void {
  const [, chain = '', ...words] = line.split(' ');
  const rule = words.join(' ');
  const own = table.own.get(chain);
  if (own) {
    own.push(rule);
    return;
  }
  const position = (lengths.get(chain) ?? 0) + 1;
  lengths.set(chain, position);
  if (position === 1) table.first.set(chain, rule);
  const target = words[words.findIndex((word) => word === '-j' || word === '-g') + 1];
  if (target?.startsWith(CHAIN_PREFIX)) table.jumps.push({ chain: target, parent: chain, position, rule });
}

/** One rule as it should stand, with the row it comes from. */
export interface WantedRule {
  readonly row: string;
  readonly rule: string;
}

/** The rules of one chain of ours for one family, in order. */
export function wantedRules(table: Table, place: Place, context: RuleContext): WantedRule[] {
  const wanted = table.rules
    .filter((row) => row.place === place && (row.family ?? context.family) === context.family)
    .flatMap((row) => row.rules(context).map((rule) => ({ row: row.id, rule })));
  const mark = markOf(wanted.map(({ rule }) => rule));
  return wanted.map(({ row, rule }) => ({ row, rule: rule.replace(CHECKED, mark) }));
}

/** Mark of connections that passed these rules: 1 to 65,535 in its upper half, as iptables-save prints it. */
function markOf(rules: readonly string[]): string {
  const digest = createHash('sha256').update(rules.join('\n')).digest().readUInt16BE();
  return `0x${(digest || 1).toString(16)}0000`;
}

/** The text for `iptables-restore --noflush` that puts every table right; null where all of them are. */
export function planFirewall(saved: string, context: RuleContext, table: Table): string | null {
  const seen = parseSaved(saved);
  const names = new Set<string>([...PLACES.map((place) => place.table), ...seen.keys()]);
  const texts: string[] = [];
  for (const name of names) {
    const text = planOneTable(name, seen.get(name) ?? emptyTable(), context, table);
    if (text) texts.push(text);
  }
  return texts.length > 0 ? texts.join('') : null;
}

function planOneTable(name: string, seen: SavedTable, context: RuleContext, table: Table): string | null {
  const chains = PLACES.filter((place) => place.table === name).map(({ parent }) => ({
    parent,
    chain: chainOf(parent),
    rules: wantedRules(table, `${name} ${parent}` as Place, context).map(({ rule }) => rule),
  }));
  const strange = [...seen.own.keys()].filter((chain) => !chains.some((row) => row.chain === chain));
  const policies = wrongPolicies(name, seen, table);
  const settled = chains.every(
    ({ parent, chain, rules }) => jumpsRight(seen, parent) && sameRules(seen.own.get(chain), rules),
  );
  if (settled && strange.length === 0 && policies.length === 0) return null;
  const lines = [`*${name}`, ...policies];
  // Naming an own chain empties it, within the same atomic step that fills it again.
  for (const chain of [...chains.map((row) => row.chain), ...strange]) lines.push(`:${chain} - [0:0]`);
  for (const jump of seen.jumps) lines.push(`-D ${jump.parent} ${jump.rule}`);
  for (const { parent, chain } of chains) lines.push(`-I ${parent} 1 -j ${chain}`);
  for (const { chain, rules } of chains) for (const rule of rules) lines.push(`-A ${chain} ${rule}`);
  for (const chain of strange) lines.push(`-X ${chain}`);
  return `${lines.join('\n')}\nCOMMIT\n`;
}

/** Whether a built-in chain jumps to ours once, unconditionally and before anything else. */
export function jumpsRight(seen: SavedTable | undefined, parent: string): boolean {
  const jumps = seen?.jumps.filter((jump) => jump.chain === chainOf(parent)) ?? [];
  const [jump] = jumps;
  const first = jump?.parent === parent && jump.position === 1 && jump.rule === `-j ${chainOf(parent)}`;
  return jumps.length === 1 && first;
}

function wrongPolicies(name: string, seen: SavedTable, table: Table): string[] {
  return table.policies.flatMap(({ place, policy }) => {
    const [of, chain = ''] = place.split(' ');
    return of === name && seen.policies.get(chain) !== policy ? [`:${chain} ${policy} [0:0]`] : [];
  });
}

function sameRules(seen: readonly string[] | undefined, wanted: readonly string[]): boolean {
  return seen?.length === wanted.length && wanted.every((rule, index) => rule === seen[index]);
}
