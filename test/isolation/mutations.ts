/** Every way to take one single thing out of the table of an exit: a rule, a policy, a setting. */
import type { RuleContext } from '@katafract/agent/plan/context';
import type { SettingContext } from '@katafract/agent/plan/sysctls';
import type { Table } from '@katafract/agent/plan/table';
import type { Family } from './bed.ts';

export interface Mutation {
  readonly row: string;
  /** Nothing is to break. */
  readonly spares: boolean;
  /** What is missing, as the kernel would be told it. */
  readonly what: string;
  readonly table: Table;
}

const at = <Item>(items: readonly Item[], index: number) => items.filter((_, each) => each !== index);

/**
 * @param contexts in which rules apply; a rule that is there in any of them is taken out in all
 * @param setting whatever the settings depend on
 */
export function mutations(
  table: Table,
  family: Family,
  contexts: readonly RuleContext[],
  setting: SettingContext,
): Mutation[] {
  const here = (row: { family?: Family }) => (row.family ?? family) === family;
  const replaced = <Row extends { id: string }>(rows: readonly Row[], row: Row) =>
    rows.map((each) => (each.id === row.id ? row : each));
  const rules = table.rules.filter(here).flatMap((row) => {
    const [wanted = []] = contexts.map((context) => row.rules(context)).filter((each) => each.length > 0);
    return wanted.map((rule, index) => ({
      row: row.id,
      spares: row.spares ?? false,
      what: `${row.place}: ${rule}`,
      table: {
        ...table,
        rules: replaced(table.rules, { ...row, rules: (context) => at(row.rules(context), index) }),
      },
    }));
  });
  const policies = table.policies.filter(here).map((row) => ({
    row: row.id,
    spares: false,
    what: `${row.place}: policy ${row.policy}`,
    table: { ...table, policies: table.policies.filter(({ id }) => id !== row.id) },
  }));
  const settings = (['settings', 'forwarding'] as const).flatMap((kind) =>
    table[kind].filter(here).flatMap((row) =>
      row.settings(setting).map(({ path, value }, index) => ({
        row: row.id,
        spares: false,
        what: `${path} = ${value}`,
        table: {
          ...table,
          [kind]: replaced(table[kind], { ...row, settings: (context) => at(row.settings(context), index) }),
        },
      })),
    ),
  );
  return [...rules, ...policies, ...settings];
}
