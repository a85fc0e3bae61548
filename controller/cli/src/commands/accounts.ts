/** Sigils, and what was done to accounts and the fleet. */
import { TIERS } from '@katafract/shared/sigil';
import { type Command, Option } from 'commander';
import { AuditEntry, pageOf, RolledBack, Sigil, SigilMinted } from '../bodies.ts';
import { type Act, asCount, asMoment, type Context, momentFrom, part } from '../command.ts';
import { table } from '../text.ts';

interface MintOptions {
  readonly tier: string;
  readonly expires: string;
  readonly subscription?: string;
  readonly device?: string;
}
interface AuditOptions {
  readonly subject?: string;
  readonly action?: string;
  readonly actor?: string;
  readonly limit: number;
}

export function accountCommands(program: Command, act: Act): void {
  const sigil = program.command('sigil').description('subscription tokens');
  sigil
    .command('mint')
    .description('mint a Sigil; it is shown here only')
    .addOption(
      new Option('--tier <tier>', 'what it grants').choices(Object.keys(TIERS)).makeOptionMandatory(),
    )
    .requiredOption('--expires <time>', 'when it ends: 2026-01-31T22:00:00Z, or 30d from now', asMoment)
    .option('--subscription <id>', 'of a subscription that is there (default: a new one)')
    .option('--device <thumbprint>', 'bind it to a device')
    .action(act(mint));
  sigil
    .command('revoke')
    .description('revoke a Sigil; with the last one of a subscription or a device its peers go too')
    .argument('<sigil>', 'its id, not the token')
    .action(act(revoke));
  program
    .command('audit')
    .description('what was done, newest first')
    .option('--subject <kind:id>', 'to whom or what, such as node:fra-1')
    .option('--action <action>', 'such as drain.started')
    .option('--actor <actor>', 'by whom, such as operator:eve')
    .option('--limit <count>', 'entries at most', asCount, 50)
    .action(act(audit));
  program
    .command('rollback')
    .description('undo one provisioning action of the audit log')
    .argument('<entry>', 'its number', asCount)
    .action(act(rollback));
}

async function mint(context: Context, options: MintOptions): Promise<void> {
  const { tier, expires, subscription, device } = options;
  const body = { tier, expiresAt: momentFrom(expires, context.now), subscription, device };
  const asked = { schema: SigilMinted, body, makes: true };
  const made = await (await context.api).call('POST', 'admin/sigils', asked);
  context.show(made.raw, () => made.body.sigil);
  if (!context.json) context.io.err(`sigil ${made.body.id} of subscription ${made.body.subscription}`);
}

async function revoke(context: Context, id: string): Promise<void> {
  const { body, raw } = await (await context.api).call('POST', `admin/sigils/${part(id)}/revoke`, {
    schema: Sigil,
  });
  context.show(raw, () => `${body.id} is revoked`);
}

async function audit(context: Context, { limit, ...filter }: AuditOptions): Promise<void> {
  const items: (typeof AuditEntry)['_output'][] = [];
  const raw: unknown[] = [];
  const query = new URLSearchParams(Object.entries(filter).filter(([, value]) => value !== undefined));
  while (items.length < limit) {
    query.set('limit', String(Math.min(100, limit - items.length)));
    const answer = await (await context.api).call('GET', `admin/audit?${query}`, {
      schema: pageOf(AuditEntry),
    });
    items.push(...answer.body.items);
    raw.push(...(answer.raw as { items: unknown[] }).items);
    if (answer.body.next === null) break;
    query.set('cursor', answer.body.next);
  }
  context.show({ items: raw }, () =>
    table(
      ['>ENTRY', 'TIME', 'ACTOR', 'ACTION', 'SUBJECT', 'DETAIL'],
      items.map(({ id, at, actor, action, subject, detail }) => [
        id,
        at,
        actor,
        action,
        subject,
        JSON.stringify(detail),
      ]),
    ),
  );
}

async function rollback(context: Context, entry: number): Promise<void> {
  const { body, raw } = await (await context.api).call('POST', `admin/audit/${entry}/rollback`, {
    schema: RolledBack,
  });
  context.show(raw, () => `undone: ${body.undone} (entry ${body.entry})`);
}
