/**
 * A certificate chain as Apple signs with: root, intermediate and leaf (P-256), the latter two with Apple's marker
 * extensions, made by openssl. Whoever does not put this root into a configuration does not trust it.
 */
import { execFile } from 'node:child_process';
import { createPrivateKey, generateKeyPairSync, type KeyObject, X509Certificate } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

export interface Chain {
  /** DER of the root. */
  readonly root: Buffer;
  /** Leaf, intermediate, root: base64 of DER, as the `x5c` of a JWS header (RFC 7515, 4.1.6). */
  readonly x5c: readonly string[];
  readonly leafKey: KeyObject;
}

/** Marks the intermediate (Worldwide Developer Relations). */
const INTERMEDIATE_OID = '1.2.840.113635.100.6.2.1';
/** Marks the leaf (App Store receipt signing). */
const LEAF_OID = '1.2.840.113635.100.6.11.1';

const run = promisify(execFile);

/** @param markers false: a chain without Apple's marker extensions, such as any CA could issue */
export async function appleChain(name = 'Test', markers = true): Promise<Chain> {
  const folder = await mkdtemp(join(tmpdir(), 'kf-pki-'));
  try {
    return await makeChain(folder, name, markers);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function makeChain(folder: string, name: string, markers: boolean): Promise<Chain> {
  const at = (file: string) => join(folder, file);
  const openssl = (...args: string[]) => run('openssl', args, { cwd: folder });
  const ca = 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n';
  const marker = (oid: string) => (markers ? `${oid}=ASN1:NULL\n` : '');
  await writeFile(at('root.cnf'), ca);
  await writeFile(at('intermediate.cnf'), `${ca}${marker(INTERMEDIATE_OID)}`);
  await writeFile(at('leaf.cnf'), `basicConstraints=critical,CA:FALSE\n${marker(LEAF_OID)}`);
  for (const who of ['root', 'intermediate', 'leaf']) {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    await writeFile(at(`${who}.key`), privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 });
    await openssl(
      'req',
      '-new',
      '-key',
      `${who}.key`,
      '-subj',
      `/O=${name}/CN=${name} ${who}`,
      '-out',
      `${who}.csr`,
    );
  }
  const sign = (who: string, ...by: string[]) =>
    openssl(
      'x509',
      '-req',
      '-in',
      `${who}.csr`,
      '-extfile',
      `${who}.cnf`,
      '-days',
      '3650',
      '-sha256',
      '-out',
      `${who}.pem`,
      ...by,
    );
  await sign('root', '-signkey', 'root.key', '-set_serial', '1');
  await sign('intermediate', '-CA', 'root.pem', '-CAkey', 'root.key', '-set_serial', '2');
  await sign('leaf', '-CA', 'intermediate.pem', '-CAkey', 'intermediate.key', '-set_serial', '3');
  const der = async (who: string) => new X509Certificate(await readFile(at(`${who}.pem`))).raw;
  const [leaf, intermediate, root] = await Promise.all([der('leaf'), der('intermediate'), der('root')]);
  return {
    root,
    x5c: [leaf, intermediate, root].map((certificate) => certificate.toString('base64')),
    leafKey: createPrivateKey(await readFile(at('leaf.key'))),
  };
}
