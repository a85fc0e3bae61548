import { drizzle } from 'drizzle-orm/postgres-js';
import { expect, it } from 'vitest';
import { auditLog } from '../audit/tables.ts';
import { connect } from './db.ts';
import { createLogger, type LogFields } from './log.ts';

function capture() {
  const lines: string[] = [];
  return { lines, log: createLogger('debug', { write: (line: string) => void lines.push(line) }) };
}

it('writes fields, bound fields and errors with their causes', () => {
  const { lines, log } = capture();
  const cause = Object.assign(new Error('inner'), { code: 'EINNER' });
  log.child({ node: 'exit-a' }).warn({ err: new Error('outer', { cause }), count: 2 }, 'it happened');
  expect(JSON.parse(lines[0] ?? '')).toMatchObject({
    level: 40,
    msg: 'it happened',
    node: 'exit-a',
    count: 2,
    err: { message: 'outer', cause: { message: 'inner', code: 'EINNER' } },
  });
});

it('lets no address, key or token through, wherever it was put', () => {
  const { lines, log } = capture();
  const secrets = [
    '203.0.113.77',
    '2001:db8::77',
    `${'A'.repeat(43)}=`,
    'eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2ln',
    `kfj1_${'x'.repeat(43)}_${'y'.repeat(43)}`,
    'someone@example.org',
  ];
  for (const secret of secrets) {
    log.info({ reason: `got ${secret}.` }, `message with ${secret}`);
    log.error({ err: new Error(`failed for ${secret}`, { cause: new Error(secret) }) }, 'failed');
    log.info({ token: secret } as LogFields, 'a field that is not on the list');
  }
  for (const secret of secrets) expect(lines.join('')).not.toContain(secret);
});

it('leaves the parameters of a failed query out', async () => {
  const { lines, log } = capture();
  const sql = connect('postgres://nobody@127.0.0.1:1/none', { max: 1 });
  const row = { actor: 'system', action: 'test', subject: 'canary-subject', detail: {} };
  const err = await drizzle(sql)
    .insert(auditLog)
    .values(row)
    .catch((reason: unknown) => reason);
  log.error({ err }, 'failed');
  expect(lines[0]).toContain('insert into');
  expect(lines[0]).not.toContain('canary-subject');
  await sql.end();
});
