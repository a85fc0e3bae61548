/**
 * What a new machine is told: a `#cloud-config` document that takes a bare Debian to an enrolled node. It is JSON, which
 * is YAML: nothing in it can be mistaken for anything else, and it can be read back.
 *
 * cloud-init itself only writes files and starts one unit, which does the rest (setup-script.ts) until it has succeeded
 * once, also over a reboot in the middle. What varies from machine to machine is data in files, never part of a script.
 */
import { JoinToken } from '@katafract/shared/enroll';
import { KatafractError } from '@katafract/shared/errors';
import { NodeId } from '@katafract/shared/units';
import { z } from 'zod';
import { BASE_PACKAGES, SETUP_DIRECTORY, SETUP_SCRIPT, SETUP_UNIT } from './setup-script.ts';

/** Hetzner's limit, bytes; other providers have other ones (AWS 16 KiB). */
const MAX_USER_DATA = 32 * 1024;

const HEADER = '#cloud-config\n';

/** Of a URL, what needs no quoting anywhere: no blank, quote, dollar, backslash or control character. */
const PlainUrl = z
  .string()
  .max(1024)
  .regex(/^https?:\/\/[A-Za-z0-9._~:/?#[\]@!&()*+,;=%-]+$/, 'a URL of http:// or https://');

const AptWords = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9./-]*(?: [A-Za-z0-9][A-Za-z0-9./-]*)*$/, 'words of letters, digits and ./-');

/** Where the agent's package comes from. It is verified before it is installed. */
export const AgentSource = z.discriminatedUnion('kind', [
  /** An apt repository; `key` (ASCII-armoured OpenPGP) is trusted for nothing else. */
  z.object({
    kind: z.literal('apt'),
    url: PlainUrl,
    suite: AptWords,
    components: AptWords,
    key: z
      .string()
      .regex(
        /^-----BEGIN PGP PUBLIC KEY BLOCK-----\n[\x20-\x7e\n]+\n-----END PGP PUBLIC KEY BLOCK-----\n?$/,
        'an OpenPGP public key, ASCII-armoured',
      ),
  }),
  /** One file, known by its SHA-256. */
  z.object({
    kind: z.literal('deb'),
    url: PlainUrl,
    sha256: z.string().regex(/^[0-9a-f]{64}$/, 'a SHA-256 in lower-case hex'),
  }),
]);
export type AgentSource = z.infer<typeof AgentSource>;

const CloudInit = z.object({
  node: NodeId,
  controllerUrl: PlainUrl,
  /** Works once and expires: the provider's metadata service shows it for as long as the machine lives. */
  joinToken: JoinToken,
  /** UDP port of the tunnel. */
  endpointPort: z.number().int().min(1).max(65_535),
  /** Public name or IPv4 address of the machine; without one, the address that its default route leaves from. */
  endpointHost: z
    .string()
    .regex(/^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?$/, 'a host name or an IPv4 address')
    .optional(),
  agent: AgentSource,
  /** The operator's own script, run as root before anything else, such as to join the mesh; again when it failed. */
  bootstrap: z
    .string()
    .regex(/^#!/, 'a script begins with #!')
    .refine((text) => !text.includes('\0') && Buffer.from(text).toString() === text, 'not a text')
    .optional(),
});
export type CloudInit = z.input<typeof CloudInit>;

/** What of cloud-init's vocabulary is used. */
const CloudConfig = z.object({
  hostname: z.string(),
  ssh_pwauth: z.literal(false),
  ntp: z.object({ enabled: z.literal(true) }),
  package_update: z.literal(true),
  package_upgrade: z.literal(true),
  packages: z.array(z.string()),
  write_files: z.array(z.object({ path: z.string(), permissions: z.string(), content: z.string() })),
  runcmd: z.array(z.array(z.string())),
});
export type CloudConfig = z.infer<typeof CloudConfig>;

/**
 * @throws KatafractError `cloud_init_invalid` names the fields that are wrong, never their values;
 * `cloud_init_too_large`
 */
export function renderCloudInit(machine: CloudInit): string {
  const input = CloudInit.safeParse(machine);
  if (!input.success) {
    const why = input.error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`).join('; ');
    throw new KatafractError('cloud_init_invalid', `a machine cannot be told this: ${why}`);
  }
  const text = HEADER + plainJson(cloudConfig(input.data));
  const bytes = Buffer.byteLength(text);
  if (bytes <= MAX_USER_DATA) return text;
  throw new KatafractError(
    'cloud_init_too_large',
    `user data may have ${MAX_USER_DATA} bytes and would have ${bytes}: let the bootstrap script fetch what it needs`,
    { detail: { bytes, limit: MAX_USER_DATA } },
  );
}

/** Reads back what `renderCloudInit` has made: for whoever is cloud-init's stand-in. @throws ZodError, SyntaxError */
export function readCloudInit(text: string): CloudConfig {
  return CloudConfig.parse(JSON.parse(text.slice(HEADER.length)));
}

/** What is needed to enroll, of a document that was read back. */
export function enrollmentOf(config: CloudConfig) {
  const file = (name: string) =>
    config.write_files.find(({ path }) => path === `${SETUP_DIRECTORY}/${name}`)?.content ?? '';
  const settings = new Map(
    file('environment')
      .split('\n')
      .map((line): [string, string] => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  );
  return {
    joinToken: JoinToken.parse(file('token').trim()),
    controllerUrl: settings.get('KATAFRACT_CONTROLLER') ?? '',
    endpointPort: Number(settings.get('KATAFRACT_ENDPOINT_PORT')),
    endpointHost: settings.get('KATAFRACT_ENDPOINT_HOST') ?? null,
  };
}

function cloudConfig(machine: z.output<typeof CloudInit>): CloudConfig {
  const { node, joinToken, bootstrap } = machine;
  const setup = (name: string, permissions: string, content: string) => ({
    path: `${SETUP_DIRECTORY}/${name}`,
    permissions,
    content,
  });
  return {
    hostname: node,
    // also against what a provider's own (vendor) data say
    ssh_pwauth: false,
    ntp: { enabled: true },
    package_update: true,
    package_upgrade: true,
    packages: [...BASE_PACKAGES],
    write_files: [
      setup('setup', '0700', SETUP_SCRIPT),
      setup('environment', '0600', environment(machine)),
      setup('token', '0600', `${joinToken}\n`),
      ...aptFiles(machine.agent).map(([name, content]) => setup(name, '0600', content)),
      ...(bootstrap === undefined ? [] : [setup('bootstrap', '0700', bootstrap)]),
      { path: '/etc/systemd/system/katafract-setup.service', permissions: '0644', content: SETUP_UNIT },
    ],
    // not waited for: it waits for cloud-init in its turn, and outlives a reboot
    runcmd: [
      ['systemctl', 'daemon-reload'],
      ['systemctl', 'enable', '--now', '--no-block', 'katafract-setup.service'],
    ],
  };
}

/** For systemd's EnvironmentFile=, which takes a value as it stands where nothing in it is quoted. */
function environment({
  controllerUrl,
  endpointPort,
  endpointHost,
  agent,
}: z.output<typeof CloudInit>): string {
  const settings = {
    KATAFRACT_CONTROLLER: controllerUrl,
    KATAFRACT_ENDPOINT_PORT: endpointPort,
    ...(endpointHost === undefined ? {} : { KATAFRACT_ENDPOINT_HOST: endpointHost }),
    ...(agent.kind === 'deb' ? { KATAFRACT_DEB_URL: agent.url, KATAFRACT_DEB_SHA256: agent.sha256 } : {}),
  };
  return Object.entries(settings)
    .map(([name, value]) => `${name}=${value}\n`)
    .join('');
}

function aptFiles(agent: AgentSource): [string, string][] {
  if (agent.kind !== 'apt') return [];
  const { url, suite, components, key } = agent;
  const source = {
    Types: 'deb',
    URIs: url,
    Suites: suite,
    Components: components,
    'Signed-By': '/etc/apt/keyrings/katafract.asc',
  };
  const lines = Object.entries(source).map(([field, value]) => `${field}: ${value}\n`);
  return [
    ['apt.sources', lines.join('')],
    ['apt.asc', key],
  ];
}

/**
 * JSON that a reader of YAML 1.1 takes for the same: what it does not allow in a text, or takes for the end of a line,
 * is escaped.
 */
function plainJson(value: unknown): string {
  const unprintable = /[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]/g;
  return JSON.stringify(value).replace(
    unprintable,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}
