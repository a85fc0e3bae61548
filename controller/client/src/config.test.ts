import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Peer } from '@katafract/shared/api';
import { renderWgQuick } from '@katafract/shared/wg-quick';
import QRCode from 'qrcode';
import { describe, expect, it } from 'vitest';
import { configFor, fillPrivateKey, parseConfig } from './config.ts';
import { generateKeyPair } from './keys.ts';
import { qrSvg, qrText } from './qr.ts';

const { privateKey, publicKey } = await generateKeyPair();
const other = await generateKeyPair();
const exits = [
  { node: 'fra-1', region: 'eu-de', endpoint: '203.0.113.5:51820', publicKey: other.publicKey },
  { node: 'ams-1', region: 'eu-nl', endpoint: '[2001:db8::7]:51820', publicKey: other.publicKey },
].map((exit, rank) => ({ ...exit, role: rank === 0 ? 'primary' : 'standby', status: 'active' }));
const draft = Peer.parse({
  id: '01932f3e-0000-7000-8000-000000000001',
  publicKey,
  region: 'eu-de',
  addresses: { ipv4: '10.64.0.2', ipv6: 'fd6b:6174:6166::2' },
  dns: ['10.64.0.1', 'fd6b:6174:6166::1'],
  exits,
  config: '',
  status: 'active',
  createdAt: '2026-11-22T04:00:00Z',
  provisionedAt: '2026-11-22T04:00:00Z',
});
const [primary, standby] = draft.exits;
if (primary === undefined || standby === undefined) throw new Error('two exits expected');
const peer = { ...draft, config: renderWgQuick({ ...draft, exit: primary, mtu: 1412 }) };

describe('wg-quick text', () => {
  it('reads as documented, private key blank', () => {
    expect(peer.config).toBe(
      [
        '[Interface]',
        'PrivateKey = ',
        'Address = 10.64.0.2/32, fd6b:6174:6166::2/128',
        'DNS = 10.64.0.1, fd6b:6174:6166::1',
        'MTU = 1412',
        '',
        '[Peer]',
        `PublicKey = ${other.publicKey}`,
        'Endpoint = 203.0.113.5:51820',
        'AllowedIPs = 0.0.0.0/0, ::/0',
        'PersistentKeepalive = 25',
        '',
      ].join('\n'),
    );
  });

  it('the filled file and one for a standby differ in the exit alone, and the real wg-quick takes both', () => {
    const filled = fillPrivateKey(peer.config, privateKey);
    const failover = configFor(peer, standby, privateKey);
    expect(configFor(peer, primary, privateKey)).toBe(filled);
    expect(failover).toBe(filled.replace(primary.endpoint, standby.endpoint));
    expect(parseConfig(failover)).toMatchObject({
      Interface: { PrivateKey: privateKey, DNS: peer.dns, MTU: 1412 },
      Peer: { Endpoint: '[2001:db8::7]:51820', AllowedIPs: ['0.0.0.0/0', '::/0'] },
    });
    const dir = mkdtempSync(join(tmpdir(), 'wraith-config-'));
    try {
      const file = join(dir, 'kf0.conf');
      for (const text of [filled, failover]) {
        writeFileSync(file, text, { mode: 0o600 });
        const stripped = execFileSync('wg-quick', ['strip', file], { encoding: 'utf8' });
        expect(stripped).toContain(`PrivateKey = ${privateKey}`);
        expect(stripped).not.toContain('Address');
      }
    } finally {
      rmSync(dir, { recursive: true });
    }
  });

  it.each([
    ['a command that wg-quick would run as root', peer.config.replace('MTU = 1412', 'PostUp = id')],
    ['a second peer', peer.config + peer.config.slice(peer.config.indexOf('[Peer]'))],
    ['a doubled setting', peer.config.replace('MTU = 1412', 'MTU = 1412\nMTU = 1412')],
    ['a missing endpoint', peer.config.replace(/Endpoint.*\n/, '')],
    ['a line that is none', `${peer.config}what\n`],
    ['settings before any section', peer.config.replace('[Interface]\n', '')],
    ['a private key already there', peer.config.replace('PrivateKey = ', `PrivateKey = ${privateKey}`)],
  ])('refuses %s', (_, text) => {
    expect(() => fillPrivateKey(text, privateKey)).toThrow(
      expect.objectContaining({ code: 'config_invalid' }),
    );
  });

  it('refuses a malformed private key without showing it', () => {
    const bad = `${privateKey}\nPostUp = id`;
    expect(() => fillPrivateKey(peer.config, bad)).toThrow(
      expect.objectContaining({ code: 'config_invalid' }),
    );
    expect(() => configFor(peer, primary, bad)).toThrow(expect.objectContaining({ code: 'config_invalid' }));
    const message = (() => {
      try {
        return fillPrivateKey(peer.config, `${privateKey.slice(0, 40)}!!!!`);
      } catch (error) {
        return String(error);
      }
    })();
    expect(message).not.toContain(privateKey.slice(0, 40));
  });
});

describe('QR code', () => {
  const text = fillPrivateKey(peer.config, privateKey);

  it('carries the file byte for byte, and the terminal shows exactly its modules within a quiet zone of 4', () => {
    const { modules, segments } = QRCode.create(text, { errorCorrectionLevel: 'L' });
    const bytes = segments.map((segment) =>
      Buffer.from(segment.data as string | Uint8Array).toString('utf8'),
    );
    expect(bytes.join('')).toBe(text);
    const rows = qrText(text)
      .trimEnd()
      .split('\n')
      .map((line) => line.slice('\u001b[30;107m'.length, -'\u001b[0m'.length));
    const dark = (row: number, column: number) => {
      const character = rows[(row + 4) >> 1]?.[column + 4];
      return character === '█' || character === (row % 2 === 0 ? '▀' : '▄');
    };
    for (let row = -4; row < modules.size + 4; row++) {
      for (let column = -4; column < modules.size + 4; column++) {
        const inside =
          row >= 0 &&
          column >= 0 &&
          row < modules.size &&
          column < modules.size &&
          modules.get(row, column) === 1;
        expect(dark(row, column)).toBe(inside);
      }
    }
    expect(rows.every((line) => line.length === modules.size + 8)).toBe(true);
  });

  it('is an SVG document too', async () => {
    expect(await qrSvg(text)).toMatch(/^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg".*<path.*<\/svg>\s*$/s);
  });
});
