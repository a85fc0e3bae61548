/**
 * The port to the message broker, whichever it is: the embedded one (embedded-broker.ts) or a foreign one
 * (external-broker.ts). It carries messages and may lose them; nothing above relies on it for correctness.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { NodePublicJwk } from '@katafract/shared/node-token';
import type { OperatorName } from '@katafract/shared/operator-command';
import type { UpLeaf } from '@katafract/shared/topics';
import type { NodeId } from '@katafract/shared/units';

/** The longest message a node or an operator may send, in bytes. Larger ones are refused and counted, unread. */
export const UP_MESSAGE_BYTES = 8 * 1024;

export interface BusHandlers {
  /** A message of a node that the broker let through; its content is still to be checked. */
  onMessage(node: NodeId, leaf: UpLeaf, payload: Buffer): void;
  /**
   * A command of an operator for a node, which any broker may have made up, kept or repeated. `kept`: the broker had it
   * before we listened. Resolves once it is decided; rejects where it could not be, and should come again.
   */
  onCommand(node: NodeId, payload: Buffer, kept: boolean): Promise<void>;
  /** The broker refused something: `reason` is a stable word for a counter. */
  onRefused(reason: string, node: NodeId | null): void;
  /** The connection to a foreign broker came or went. */
  onConnection(up: boolean): void;
}

/** The key a node enrolled with; null for one that is unknown or retired. */
export type IdentityOf = (node: NodeId) => Promise<NodePublicJwk | null>;

/** The key an operator registered; null for one who has none, or whose was revoked. */
export type OperatorKeyOf = (name: OperatorName) => Promise<NodePublicJwk | null>;

/** 0: may be lost with the connection; 1: the broker and the receiver confirm it, at the price of two more packets. */
export type Qos = 0 | 1;

export interface Bus {
  start(handlers: BusHandlers): Promise<void>;
  /**
   * Resolves when the broker has taken it, or at QoS 0 when it is on its way there. Rejects while there is no broker.
   */
  publish(topic: string, payload: string, qos: Qos): Promise<void>;
  /** Whether messages can pass at the moment. */
  ready(): boolean;
  /** Throws a node off and keeps it out as far as the broker is concerned. */
  evict(node: NodeId): Promise<void>;
  /** Lets a node in that showed the controller a valid token; only a foreign broker needs telling. */
  admit(node: NodeId, token: string, expiresAt: number): Promise<void>;
  /** The same of operators: they may publish commands, and hear nothing. */
  evictOperator(name: OperatorName): Promise<void>;
  admitOperator(name: OperatorName, token: string, expiresAt: number): Promise<void>;
  stop(): Promise<void>;
}

export function brokerUnavailable(cause?: unknown): KatafractError {
  return new KatafractError('broker_unavailable', 'the message broker cannot be reached', {
    status: 503,
    retryAfter: 2,
    cause,
  });
}
