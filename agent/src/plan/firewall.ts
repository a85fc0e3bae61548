/**
 * Compares the firewall with the rule table and writes the text that puts it right, pure. One text is one atomic step:
 * the old rules hold until the new ones do, and chains of others are never named but for the one jump in each.
 */
import { CHAIN_PREFIX, CHAINS, chainRules, type RuleContext } from './rules.ts';

interface SavedTable {
  /** Own chains and their rules (the text after `-A CHAIN `). */
  readonly own: Map<string, string[]>;
  /** Rules of other chains that jump to one of ours: which one, from where, at which position (from 1). */
  readonly jumps: { chain: string; parent: string; position: number; rule: string }[];
}

/** Reads what iptables-save printed, as far as it concerns us. */
export function parseSaved(text: string): Map<string, SavedTable> {
  const tables = new Map<string, SavedTable>();
  let table: SavedTable = { own: new Map(), jumps: [] };
  let lengths = new Map<string, number>();
  for (const line of text.split('\n')) {
    if (line.startsWith('*')) {
      table = { own: new Map(), jumps: [] };
      lengths = new Map();
      tables.set(line.slice(1), table);
    } else if (line.startsWith(`:${CHAIN_PREFIX}`)) {
      table.own.set(line.slice(1).split(' ')[0] ?? '', []);
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
  const target = words[words.findIndex((word) => word === '-j' || word === '-g') + 1];
  if (target?.startsWith(CHAIN_PREFIX)) table.jumps.push({ chain: target, parent: chain, position, rule });
}

/** The text for `iptables-restore --noflush` that puts every table right; null where all of them are. */
export function planFirewall(saved: string, context: RuleContext): string | null {
  const seen = parseSaved(saved);
  const tables = new Set<string>([...CHAINS.map((row) => row.table), ...seen.keys()]);
  const texts: string[] = [];
  for (const name of tables) {
    const table = seen.get(name) ?? { own: new Map<string, string[]>(), jumps: [] };
    const text = planOneTable(name, table, context);
    if (text) texts.push(text);
  }
  return texts.length > 0 ? texts.join('') : null;
}

function planOneTable(name: string, seen: SavedTable, context: RuleContext): string | null {
  const chains = CHAINS.filter((row) => row.table === name);
  const foreign = [...seen.own.keys()].filter((chain) => !chains.some((row) => row.chain === chain));
  const settled = chains.every((row) => {
    const jumps = seen.jumps.filter((jump) => jump.chain === row.chain);
    const [jump] = jumps;
    const jumpRight =
      jumps.length === 1 &&
      jump?.parent === row.parent &&
      jump.position === 1 &&
      jump.rule === `-j ${row.chain}`;
    return jumpRight && sameRules(seen.own.get(row.chain), chainRules(row.chain, context));
  });
  if (settled && foreign.length === 0) return null;
  const lines = [`*${name}`];
  // Naming an own chain empties it, within the same atomic step that fills it again.
  for (const chain of [...chains.map((row) => row.chain), ...foreign]) lines.push(`:${chain} - [0:0]`);
  for (const jump of seen.jumps) lines.push(`-D ${jump.parent} ${jump.rule}`);
  for (const row of chains) lines.push(`-I ${row.parent} 1 -j ${row.chain}`);
  for (const row of chains) {
    for (const rule of chainRules(row.chain, context)) lines.push(`-A ${row.chain} ${rule}`);
  }
  for (const chain of foreign) lines.push(`-X ${chain}`);
  return `${lines.join('\n')}\nCOMMIT\n`;
}

function sameRules(seen: readonly string[] | undefined, wanted: readonly string[]): boolean {
  return seen?.length === wanted.length && wanted.every((rule, index) => rule === seen[index]);
}
