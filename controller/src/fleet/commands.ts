/**
 * Operators' commands that come over the broker. The broker is not trusted, and anybody may publish: what counts is the
 * signature inside, by a key that is registered and not revoked, over this fleet, this node and a time that is now. Each
 * command works once, and none after a later one of the same operator for the same node, so that a broker which keeps,
 * repeats or reorders gains nothing. Then it does what the route of the same name does (drains.ts).
 *
 * That it was decided is written in the transaction that does it: a crash in between leaves neither. A command that the
 * fleet's state refuses (no such node, no drain to pause) is decided as well.
 */
import { KatafractError } from '@katafract/shared/errors';
import {
  COMMAND_LEEWAY_MS,
  COMMAND_LIFE_MS,
  commandKey,
  commandRefused,
  type OperatorCommand,
  type OperatorName,
  verifyCommand,
} from '@katafract/shared/operator-command';
import type { NodeId } from '@katafract/shared/units';
import { importJWK } from 'jose';
import { Counter, type Registry } from 'prom-client';
import { signerOf } from '../operators/operators.ts';
import { databaseError, type Tx } from '../platform/db.ts';
import type { Logger } from '../platform/log.ts';
import { type DrainDeps, type First, startDrain, stepDrain } from './drains.ts';

export interface CommandsDeps extends DrainDeps {
  readonly log: Logger;
  readonly registry: Registry;
  /** Of this fleet: the public URL of its controllers. */
  readonly audience: string;
}

/** Commands that wait for their turn here; what comes beyond is refused, unread. */
const WAITING = 64;
/** Of a command that the broker had kept, what only says that it was kept. */
const STALE = new Set(['used', 'expired', 'superseded']);

export class Commands {
  readonly #deps: CommandsDeps;
  readonly #decided: Counter<'outcome'>;
  #last: Promise<void> = Promise.resolve();
  #waiting = 0;

  constructor(deps: CommandsDeps) {
    this.#deps = deps;
    this.#decided = new Counter({
      name: 'katafract_operator_commands_total',
      help: 'Commands of operators that came over the broker: obeyed, or why not',
      labelNames: ['outcome'],
      registers: [deps.registry],
    });
  }

  /**
   * Decides a command that came on the topic of `node`, one at a time. Resolves once it is obeyed, or refused for good.
   * @param kept whether the broker had it before we listened
   * @throws KatafractError `database_unavailable`, `database_busy` (503): it is not decided, and may come again
   */
  decide(node: NodeId, payload: Buffer, kept: boolean): Promise<void> {
    if (this.#waiting >= WAITING) {
      this.#refused(node, 'too_many');
      return Promise.resolve();
    }
    this.#waiting += 1;
    const turn = this.#last.then(() => this.#decide(node, payload.toString('utf8'), kept));
    this.#last = turn
      .catch(() => undefined) // whoever brought it hears of that
      .then(() => {
        this.#waiting -= 1;
      });
    return turn;
  }

  /** Resolves when nothing is being decided. */
  settled(): Promise<void> {
    return this.#last;
  }

  async #decide(node: NodeId, jws: string, kept: boolean): Promise<void> {
    try {
      const { name, command } = await this.#obey(node, jws);
      this.#decided.inc({ outcome: 'obeyed' });
      this.#deps.log.info(
        { node, reason: command.command, operator: name },
        "an operator's command was obeyed",
      );
    } catch (error) {
      const unavailable = databaseError(error);
      if (unavailable) {
        this.#decided.inc({ outcome: 'undecided' });
        throw unavailable;
      }
      const reason =
        error instanceof KatafractError ? String(error.detail?.reason ?? error.code) : 'internal';
      if (kept && STALE.has(reason)) return;
      this.#refused(node, reason, reason === 'internal' ? error : undefined);
    }
  }

  /** Never with what was sent: nobody knows what is in that. */
  #refused(node: NodeId, reason: string, err?: unknown): void {
    this.#decided.inc({ outcome: reason });
    const fields = { node, reason, ...(err === undefined ? {} : { err }) };
    this.#deps.log.warn(fields, "an operator's command was refused");
  }

  async #obey(node: NodeId, jws: string): Promise<{ name: OperatorName; command: OperatorCommand }> {
    const { db, audience, now } = this.#deps;
    const thumbprint = commandKey(jws);
    const signer = await signerOf(db.sql, thumbprint);
    const key = signer ? await importJWK(signer.jwk, 'EdDSA') : null;
    if (!signer || !key || key instanceof Uint8Array) throw commandRefused('unknown_key');
    const command = await verifyCommand(jws, key, { node, audience, now: now() });
    const once = (tx: Tx) => takeOnce(tx, thumbprint, command);
    try {
      await this.#carryOut(command, signer.name, once);
    } catch (error) {
      if (!(error instanceof KatafractError) || error.status >= 500 || error.code === 'command_refused')
        throw error;
      await db.transaction(once);
      throw commandRefused(error.code, error);
    }
    return { name: signer.name, command };
  }

  async #carryOut(command: OperatorCommand, by: OperatorName, once: First): Promise<void> {
    const { node, command: step, deadline } = command;
    const until = deadline === undefined ? undefined : new Date(deadline);
    if (step === 'drain') await startDrain(this.#deps, node, until, by, once);
    else await stepDrain(this.#deps, node, step, by, once);
  }
}

/** Uses a command up, under the lock of its key. @throws KatafractError `command_refused` */
async function takeOnce({ sql }: Tx, thumbprint: string, command: OperatorCommand): Promise<void> {
  const { id, node, at } = command;
  const signer = await signerOf(sql, thumbprint, true);
  if (!signer) throw commandRefused('unknown_key');
  const [before] = await sql<{ same: boolean }[]>`
    select id = ${id} as same from operator_commands
    where id = ${id} or (operator = ${signer.name} and node_id = ${node} and at > ${new Date(at)})
    order by same desc limit 1`;
  if (before) throw commandRefused(before.same ? 'used' : 'superseded');
  // another operator may have taken the id, and be under way
  const taken = await sql`
    insert into operator_commands (id, operator, node_id, at, forget_at)
    values (${id}, ${signer.name}, ${node}, ${new Date(at)}, ${new Date(at + COMMAND_LIFE_MS + COMMAND_LEEWAY_MS)})
    on conflict do nothing returning id`;
  if (taken.length === 0) throw commandRefused('used');
}
