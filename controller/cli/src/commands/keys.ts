/** The operator's own key, by which commands over the broker are signed. */
import { OperatorKey, RegisteredKey } from '@katafract/shared/operator-command';
import type { Command } from 'commander';
import { list, Nothing } from '../bodies.ts';
import { type Act, type Context, part } from '../command.ts';
import { keepRegistration, makeKey, readKey } from '../key.ts';
import { keyFile } from '../settings.ts';
import { ago, table } from '../text.ts';

export function keyCommands(program: Command, act: Act): void {
  const key = program
    .command('key')
    .description('keys of operators; yours is in KATAFRACT_OPERATOR_KEY_FILE or ~/.config/katafract');
  key.command('make').description('make a key; its private half stays in its file').action(act(make));
  key
    .command('register')
    .description('have the controller take your key; the file then knows the way to the broker')
    .argument('<name>', 'who you are')
    .action(act(register));
  key.command('list').description('list operators’ keys').action(act(listKeys));
  key
    .command('revoke')
    .description("revoke an operator's key, at once")
    .argument('<name>', 'whose')
    .action(act(revoke));
}

async function make(context: Context): Promise<void> {
  const path = keyFile(context.io);
  const thumbprint = await makeKey(path);
  context.show({ path, thumbprint }, () => `${thumbprint}\nin ${path}; next: katafract key register <name>`);
}

async function register(context: Context, name: string): Promise<void> {
  const path = keyFile(context.io);
  const { publicJwk } = await readKey(path);
  const asked = { schema: RegisteredKey, body: { name, publicJwk }, makes: true };
  const { body, raw } = await (await context.api).call('POST', 'admin/operator-keys', asked);
  await keepRegistration(path, body);
  context.show(raw, () => `${body.name} has the key ${body.thumbprint}`);
}

async function listKeys(context: Context): Promise<void> {
  const answer = await (await context.api).call('GET', 'admin/operator-keys', { schema: list(OperatorKey) });
  context.show(answer.raw, () =>
    table(
      ['OPERATOR', 'KEY', 'REGISTERED', 'BY', 'REVOKED'],
      answer.body.items.map(({ name, thumbprint, createdAt, createdBy, revokedAt }) => [
        name,
        thumbprint,
        ago(createdAt, context.now),
        createdBy,
        ago(revokedAt, context.now),
      ]),
    ),
  );
}

async function revoke(context: Context, name: string): Promise<void> {
  await (await context.api).call('DELETE', `admin/operator-keys/${part(name)}`, { schema: Nothing });
  context.show({ name, revoked: true }, () => `the key of ${name} is revoked`);
}
