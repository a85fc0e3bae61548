/**
 * MQTT topics `kf/1/<node>/<leaf>`. The version is part of the topic, so that two protocol versions can share a
 * broker while a fleet rolls. Which side may use which leaf is data here, and both brokers' ACLs are made from it.
 */
import { NodeId } from './units.ts';

export const PROTOCOL = 1;

/** A node publishes these and nothing else. */
export const UP_LEAVES = ['hello', 'applied', 'heartbeat', 'presence'] as const;
/** A node subscribes to these and nothing else. */
export const DOWN_LEAVES = ['desired'] as const;
/** An operator publishes these, of any node, and the controller obeys; nodes can neither read nor write them. */
export const OPERATOR_LEAVES = ['drain'] as const;
export type UpLeaf = (typeof UP_LEAVES)[number];
export type DownLeaf = (typeof DOWN_LEAVES)[number];
export type OperatorLeaf = (typeof OPERATOR_LEAVES)[number];

export function topic(node: NodeId, leaf: UpLeaf | DownLeaf | OperatorLeaf): string {
  return `kf/${PROTOCOL}/${node}/${leaf}`;
}

/** The filter by which a controller hears every node, or operators about every node. */
export function upFilter(leaf: UpLeaf | OperatorLeaf): string {
  return `kf/${PROTOCOL}/+/${leaf}`;
}

/** The client id a node must use: stable, and bound to its name so that no node can throw another off the broker. */
export function clientId(node: NodeId): string {
  return `kf-node-${node}`;
}

/** Takes an up-topic apart; null where it is none of ours. */
export function parseUpTopic(text: string): { node: NodeId; leaf: UpLeaf } | null {
  return parseTopic(text, UP_LEAVES);
}

/** Takes a topic of operators apart; null where it is none. */
export function parseOperatorTopic(text: string): { node: NodeId; leaf: OperatorLeaf } | null {
  return parseTopic(text, OPERATOR_LEAVES);
}

function parseTopic<Leaf extends string>(
  text: string,
  leaves: readonly Leaf[],
): { node: NodeId; leaf: Leaf } | null {
  const [prefix, version, name, leaf, ...rest] = text.split('/');
  if (prefix !== 'kf' || version !== String(PROTOCOL) || rest.length > 0) return null;
  const node = NodeId.safeParse(name);
  const known = leaves.find((candidate) => candidate === leaf);
  return node.success && known ? { node: node.data, leaf: known } : null;
}
