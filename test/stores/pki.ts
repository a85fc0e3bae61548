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
  /** PEM, to issue another chain under the same root. */
  readonly issuer: { readonly certificate: string; readonly key: string };
}

interface ChainOptions {
  readonly under?: Chain;
  readonly markers?: boolean;
  readonly ocsp?: string;
}

/** Marks the intermediate (Worldwide Developer Relations). */
const INTERMEDIATE_OID = '1.2.840.113635.100.6.2.1';
/** Marks the leaf (App Store receipt signing). */
const LEAF_OID = '1.2.840.113635.100.6.11.1';

const run = promisify(execFile);

/**
 * @param under whose root issues it; its own by default
 * @param markers false: without Apple's marker extensions, as the root issues for other purposes
 * @param ocsp where the status of its certificates can be asked for; none by default
 */
export async function appleChain(options: ChainOptions = {}): Promise<Chain> {
  const folder = await mkdtemp(join(tmpdir(), 'kf-pki-'));
  try {
    return await makeChain(folder, options);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function makeChain(folder: string, options: ChainOptions): Promise<Chain> {
  const { under, markers = true, ocsp } = options;
  const at = (file: string) => join(folder, file);
  const openssl = (...args: string[]) => run('openssl', args, { cwd: folder });
  const ca = 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n';
  const marker = (oid: string) => (markers ? `${oid}=ASN1:NULL\n` : '');
  const status = ocsp === undefined ? '' : `authorityInfoAccess=OCSP;URI:${ocsp}\n`;
  const extensions = {
    root: ca,
    intermediate: `${ca}${status}${marker(INTERMEDIATE_OID)}`,
    leaf: `basicConstraints=critical,CA:FALSE\n${status}${marker(LEAF_OID)}`,
  };
  const issue = async (who: keyof typeof extensions, ...by: string[]) => {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    await writeFile(at(`${who}.cnf`), extensions[who]);
    await writeFile(at(`${who}.key`), privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 });
    await openssl(
      'req',
      '-new',
      '-key',
      `${who}.key`,
      '-subj',
      `/O=Test/CN=Test ${who}`,
      '-out',
      `${who}.csr`,
    );
    const days = ['-days', '3650', '-extfile', `${who}.cnf`];
    await openssl('x509', '-req', '-in', `${who}.csr`, ...days, '-sha256', '-out', `${who}.pem`, ...by);
  };
  if (under === undefined) {
    await issue('root', '-signkey', 'root.key', '-set_serial', '1');
  } else {
    await writeFile(at('root.pem'), under.issuer.certificate);
    await writeFile(at('root.key'), under.issuer.key, { mode: 0o600 });
  }
  await issue('intermediate', '-CA', 'root.pem', '-CAkey', 'root.key', '-set_serial', '2');
  await issue('leaf', '-CA', 'intermediate.pem', '-CAkey', 'intermediate.key', '-set_serial', '3');
  const text = (file: string) => readFile(at(file), 'utf8');
  const [leaf, intermediate, root] = [
    await text('leaf.pem'),
    await text('intermediate.pem'),
    await text('root.pem'),
  ];
  const der = (pem: string) => new X509Certificate(pem).raw;
  return {
    root: der(root),
    x5c: [leaf, intermediate, root].map((pem) => der(pem).toString('base64')),
    leafKey: createPrivateKey(await text('leaf.key')),
    issuer: { certificate: root, key: await text('root.key') },
  };
}
