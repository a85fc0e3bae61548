/**
 * Who the node is: its two private keys, made here and never sent anywhere, and what the controller said when it was
 * enrolled. Enrolling may be repeated after a lost answer: the same keys are shown again.
 */
import { join } from 'node:path';
import {
  ENROLLING,
  type EnrollRequest,
  EnrollResponse,
  type JoinToken,
  splitJoinToken,
} from '@katafract/shared/enroll';
import { KatafractError } from '@katafract/shared/errors';
import { mintNodeToken, publicJwk } from '@katafract/shared/node-token';
import { Problem } from '@katafract/shared/problem';
import { type Endpoint, PublicKey } from '@katafract/shared/units';
import { type CryptoKey, calculateJwkThumbprint, exportJWK, generateKeyPair, importJWK } from 'jose';
import { z } from 'zod';
import type { Exec } from './host/exec.ts';
import { makeStateDirectory, readText, writeDurably } from './host/files.ts';

/** The node as enrolled; node.json. */
export const NodeFile = EnrollResponse.extend({
  v: z.literal(1),
  /** WireGuard's public key of the node. */
  publicKey: PublicKey,
});
export type NodeFile = z.infer<typeof NodeFile>;

const PrivateJwk = z.object({
  kty: z.literal('OKP'),
  crv: z.literal('Ed25519'),
  x: z.string(),
  d: z.string(),
});

export interface StateFiles {
  readonly node: string;
  readonly identity: string;
  readonly wireguard: string;
}

export function stateFiles(directory: string): StateFiles {
  return {
    node: join(directory, 'node.json'),
    identity: join(directory, 'identity.jwk'),
    wireguard: join(directory, 'wireguard.key'),
  };
}

export interface Identity {
  readonly node: NodeFile;
  /** Signs the node's tokens. */
  readonly key: CryptoKey;
  /** Checks desired state. */
  readonly stateKey: CryptoKey;
}

/**
 * Reads the identity of an enrolled node.
 * @throws KatafractError `not_enrolled`, or `state_damaged` where a file is there and cannot be read
 */
export async function loadIdentity(directory: string): Promise<Identity> {
  const files = stateFiles(directory);
  const [nodeText, identityText] = await Promise.all([readText(files.node), readText(files.identity)]);
  if (nodeText === null || identityText === null) {
    throw new KatafractError(
      'not_enrolled',
      `this machine is not enrolled: there is no node.json in ${directory}. Run "katafract-agent enroll" first.`,
    );
  }
  try {
    const node = NodeFile.parse(JSON.parse(nodeText));
    const key = await importKey(PrivateJwk.parse(JSON.parse(identityText)));
    return { node, key, stateKey: await importKey(node.stateKey) };
  } catch (cause) {
    throw new KatafractError('state_damaged', `the files in ${directory} cannot be read; enroll again`, {
      cause,
    });
  }
}

async function importKey(jwk: z.infer<typeof PrivateJwk> | EnrollResponse['stateKey']): Promise<CryptoKey> {
  const key = await importJWK(jwk, 'EdDSA');
  if (key instanceof Uint8Array) throw new TypeError('an OKP key is never symmetric');
  return key;
}

/** The node's Ed25519 key, made on first use. */
async function identityKey(path: string): Promise<z.infer<typeof PrivateJwk>> {
  const text = await readText(path);
  if (text !== null) return PrivateJwk.parse(JSON.parse(text));
  const { privateKey } = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
  const jwk = PrivateJwk.parse(await exportJWK(privateKey));
  await writeDurably(path, `${JSON.stringify(jwk)}\n`);
  return jwk;
}

/** The public half of the node's WireGuard key, which is made on first use. The private half goes by stdin. */
async function wireguardKey(path: string, exec: Exec): Promise<PublicKey> {
  let text = await readText(path);
  if (text === null) {
    text = await exec.run('wg', ['genkey']);
    await writeDurably(path, text);
  }
  return PublicKey.parse((await exec.run('wg', ['pubkey'], { stdin: text })).trim());
}

export interface Enrollment {
  /** The controller's base URL. */
  readonly controller: URL;
  readonly token: JoinToken;
  readonly directory: string;
  readonly endpoint?: Endpoint;
}

export interface EnrollPorts {
  readonly exec: Exec;
  readonly fetch: typeof fetch;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
}

/**
 * Makes this machine a node.
 * @throws KatafractError `controller_insecure` a token would cross the internet in the clear; `controller_unreachable`;
 * `enroll_refused` with the controller's code in `detail.code`; `controller_not_pinned` the answer came from somebody
 * else than the one who made the token
 */
export async function enroll(ports: EnrollPorts, enrollment: Enrollment): Promise<NodeFile> {
  requirePrivatePath(enrollment.controller);
  await makeStateDirectory(enrollment.directory);
  const files = stateFiles(enrollment.directory);
  const jwk = await identityKey(files.identity);
  const publicKey = await wireguardKey(files.wireguard, ports.exec);
  const proof = await mintNodeToken(await importKey(jwk), ENROLLING, 'katafract-enroll', ports.now());
  const { token, endpoint } = enrollment;
  const request: EnrollRequest = {
    token,
    publicKey,
    identity: publicJwk(jwk),
    proof,
    ...(endpoint ? { endpoint } : {}),
  };
  const answer = await post(ports.fetch, new URL('/v1/nodes/enroll', enrollment.controller), request);
  if ((await calculateJwkThumbprint(answer.stateKey)) !== splitJoinToken(token).pin) {
    throw new KatafractError(
      'controller_not_pinned',
      'the answer is not by the controller that made this join token; nothing was kept of it',
    );
  }
  const node: NodeFile = { v: 1, publicKey, ...answer };
  await writeDurably(files.node, `${JSON.stringify(node, null, 2)}\n`);
  return node;
}

async function post(send: typeof fetch, url: URL, request: EnrollRequest): Promise<EnrollResponse> {
  let response: Response;
  let body: unknown;
  try {
    response = await send(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(request),
      signal: AbortSignal.timeout(20_000),
      redirect: 'error',
    });
    body = await response.json();
  } catch (cause) {
    throw new KatafractError('controller_unreachable', `no answer from the controller at ${url.origin}`, {
      cause,
    });
  }
  const answer = EnrollResponse.safeParse(body);
  if (response.ok && answer.success) return answer.data;
  const problem = Problem.safeParse(body).data;
  throw new KatafractError(
    'enroll_refused',
    problem
      ? `the controller refused: ${problem.detail ?? problem.title} (${problem.code})`
      : `the controller answered ${response.status} with something that is no enrollment`,
    { detail: { code: problem?.code ?? 'unknown', status: response.status } },
  );
}

/** Loopback, the mesh and private networks: where plain HTTP is not overheard by the internet. */
const PRIVATE_HOST =
  /^(?:localhost|127\.|10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.|\[::1\]|\[f[cd])/;

function requirePrivatePath(controller: URL): void {
  if (controller.protocol === 'https:') return;
  if (controller.protocol === 'http:' && PRIVATE_HOST.test(controller.hostname)) return;
  throw new KatafractError(
    'controller_insecure',
    'the join token would travel in the clear: use https://, or http:// to an address of the mesh',
  );
}
