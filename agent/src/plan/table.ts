/**
 * What an exit enforces, as one table: rules of the firewall, policies of built-in chains, settings of the kernel. A row
 * is one thing that an attacker is kept from. The table is a value that planning and verifying take as a parameter, so
 * that a test can leave one row out and see which attack then gets through (test/isolation).
 */
import { POLICIES, type PolicyRow, RULES, type RuleRow } from './rules.ts';
import { FORWARDING, SETTINGS, type SettingRow } from './sysctls.ts';

export interface Table {
  readonly rules: readonly RuleRow[];
  readonly policies: readonly PolicyRow[];
  readonly settings: readonly SettingRow[];
  /** Only once everything else is in place. */
  readonly forwarding: readonly SettingRow[];
}

export const TABLE: Table = {
  rules: RULES,
  policies: POLICIES,
  settings: SETTINGS,
  forwarding: FORWARDING,
};
