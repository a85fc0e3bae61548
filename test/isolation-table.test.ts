/**
 * The table of an exit, as a page to read: each row with the attack that it stops, why it stands where it stands, and
 * the promises that break without it (isolation-4 and isolation-6 try them out).
 */
import { TABLE } from '@katafract/agent/plan/table';
import { expect, test } from 'vitest';
import { Bed, FAMILIES } from './isolation/bed.ts';
import { SCENARIOS } from './isolation/scenarios.ts';

interface Row {
  readonly id: string;
  readonly family?: 4 | 6;
  readonly attack: string;
  readonly why: string;
  readonly spares?: true;
}

function page(): string {
  const contexts = FAMILIES.flatMap((family) => Bed.contexts(family));
  const part = (title: string, rows: readonly (Row & { lines: readonly string[] })[]) => [
    `## ${title}`,
    ...rows.map(({ id, family, attack, why, spares, lines }) => {
      const proofs = SCENARIOS.filter(({ proves }) => proves.includes(id)).map(
        (scenario) => `- ${scenario.id}`,
      );
      const of = family === undefined ? 'IPv4 and IPv6' : `IPv${family}`;
      return [
        `### ${id}`,
        `${of}. **Without it:** ${attack}. **Why so:** ${why}.`,
        `\`\`\`\n${lines.join('\n')}\n\`\`\``,
        `${spares ? 'Nothing may break, tried by' : 'What breaks'}:\n\n${proofs.join('\n')}`,
      ].join('\n\n');
    }),
  ];
  const rules = TABLE.rules.map((row) => {
    const all = contexts
      .filter(({ family }) => (row.family ?? family) === family)
      .flatMap((context) => row.rules(context).map((rule) => `${row.place}: ${rule}`));
    return { ...row, lines: [...new Set(all)] };
  });
  const policies = TABLE.policies.map((row) => ({ ...row, lines: [`${row.place}: ${row.policy}`] }));
  const settings = [...TABLE.settings, ...TABLE.forwarding].map((row) => ({
    ...row,
    lines: row.settings(Bed.settingContext).map(({ path, value }) => `${path} = ${value}`),
  }));
  const head =
    '# What an exit enforces\n\nWritten by test/isolation-table.test.ts from the table in agent/src/plan, for an exit with two tunnels; every single line\nwas taken out and something broke (test/isolation), but for two that only spare packets time.';
  return `${[head, ...part('Rules', rules), ...part('Policies', policies), ...part('Settings', settings)].join('\n\n')}\n`;
}

test('is the page that is committed', async () => {
  await expect(page()).toMatchFileSnapshot('isolation/TABLE.md');
});

test('every row has its proof, and no proof is of a row that is not there', () => {
  const ids = Object.values(TABLE)
    .flat()
    .map(({ id }) => id)
    .sort();
  expect([...new Set(SCENARIOS.flatMap(({ proves }) => proves))].sort()).toEqual(ids);
});
