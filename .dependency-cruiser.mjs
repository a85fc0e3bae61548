/**
 * The boundaries of the code base, each with its reason. `node test/boundaries.mjs` holds the tree against them (and
 * makes sure that the whole tree was read). Unit tests beside the source may reach further than the source they test.
 */
/** Tests, and the beds that they stand on. */
const TEST = '\\.test\\.tsx?$|/testing/';
/** Node modules that touch the world: files, sockets, processes. */
const NODE_IO =
  '^(?:node:)?(?:fs|fs/promises|net|dgram|tls|http|https|http2|child_process|cluster|worker_threads|os|dns|dns/promises|readline|readline/promises|process|inspector)$';
const DOMAINS = ['sigil', 'billing', 'peers', 'fleet', 'vault', 'operators', 'audit'];
const ANY_DOMAIN = `^controller/src/(${DOMAINS.join('|')})/`;
/** The files by which a domain may be entered: its door, its tables (foreign keys, joins), its routes and jobs (mounted). */
const DOORS = DOMAINS.map((name) => `^controller/src/${name}/(?:${name}|tables|routes|jobs)\\.ts$`);

/** @type {import('dependency-cruiser').IConfiguration} */
export default {
  forbidden: [
    {
      name: 'no-cycles',
      comment: 'Data goes one way: in a cycle nothing can be understood, tested or replaced alone.',
      severity: 'error',
      from: {},
      to: { circular: true },
    },
    {
      name: 'resolvable',
      comment: 'An import that leads nowhere fails only when that line runs.',
      severity: 'error',
      from: {},
      to: { couldNotResolve: true },
    },
    {
      name: 'shared-stands-alone',
      comment: 'The contract is what both sides agree on; it must not know either of them.',
      severity: 'error',
      from: { path: '^shared/src/' },
      to: { path: '^(?:agent|controller|test)/' },
    },
    {
      name: 'shared-without-io',
      comment:
        'The contract runs in the browser too, and a schema that reads files is no schema. node:crypto hashes only.',
      severity: 'error',
      from: { path: '^shared/src/', pathNot: TEST },
      to: { path: NODE_IO, dependencyTypes: ['core'] },
    },
    {
      name: 'agent-not-controller',
      comment: 'Agent and controller speak over the wire only, so that they can roll independently.',
      severity: 'error',
      from: { path: '^agent/src/' },
      to: { path: '^controller/' },
    },
    {
      name: 'controller-not-agent',
      comment: 'Agent and controller speak over the wire only, so that they can roll independently.',
      severity: 'error',
      from: { path: '^controller/' },
      to: { path: '^agent/' },
    },
    {
      name: 'source-not-test',
      comment: 'What ships must not lean on what tests it.',
      severity: 'error',
      from: { path: '^(?:agent|controller|shared)/', pathNot: TEST },
      to: { path: `^test/|${TEST}` },
    },
    {
      name: 'client-only-shared',
      comment: 'The SDK runs in browsers and in apps: it carries the contract and nothing of the server.',
      severity: 'error',
      from: { path: '^controller/client/src/', pathNot: TEST },
      to: { path: '^(?:agent|test|controller/(?!client/))' },
    },
    {
      name: 'cli-only-shared',
      comment: 'The operators’ command speaks to any controller over its API: it carries the contract alone.',
      severity: 'error',
      from: { path: '^controller/cli/src/', pathNot: TEST },
      to: { path: '^(?:agent|test|controller/(?!cli/))' },
    },
    {
      name: 'agent-world-through-host',
      comment:
        'Only the real ports in host/ touch the machine: everything else can run against any other machine.',
      severity: 'error',
      from: { path: '^agent/src/', pathNot: `^agent/src/host/|${TEST}` },
      to: {
        path: '^(?:node:)?(?:child_process|fs|fs/promises|net|dgram|tls)$',
        dependencyTypes: ['core'],
      },
    },
    {
      name: 'agent-plan-is-pure',
      comment:
        'A plan is data computed from data: it can be tested over thousands of states without a machine.',
      severity: 'error',
      from: { path: '^agent/src/(?:plan/|desired/receive)', pathNot: TEST },
      to: { path: `^agent/src/(?:host|apply|observe)/|${NODE_IO}` },
    },
    {
      name: 'rules-are-pure',
      comment: 'Decisions take values and return values; they can be read and tested without a database.',
      severity: 'error',
      from: { path: '^controller/src/[a-z/-]+rules[a-z-]*\\.ts$', pathNot: TEST },
      to: {
        path: ['/(?:store|db|database)[a-z-]*\\.ts$', 'node_modules/(?:postgres|drizzle-orm)/', NODE_IO],
        pathNot: 'node_modules/(?!postgres|drizzle-orm)',
      },
    },
    {
      name: 'domain-by-its-door',
      comment:
        'A domain is entered through <domain>/<domain>.ts, so that the rest of it may change without asking anyone.',
      severity: 'error',
      from: { path: ANY_DOMAIN, pathNot: TEST },
      to: { path: ANY_DOMAIN, pathNot: ['^controller/src/$1/', ...DOORS] },
    },
    {
      name: 'domain-by-its-door-from-outside',
      comment: 'Wiring knows what a domain offers, not how it does it.',
      severity: 'error',
      from: { path: '^controller/src/', pathNot: [ANY_DOMAIN, TEST] },
      to: { path: ANY_DOMAIN, pathNot: DOORS },
    },
    {
      name: 'no-dev-dependency',
      comment: 'What ships must not import a package that is installed for development only.',
      severity: 'error',
      from: { path: '^(?:agent|controller|shared)/src/', pathNot: TEST },
      to: { dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown'], dependencyTypesNot: ['type-only'] },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '(?:^|/)dist/' },
    tsConfig: { fileName: 'tsconfig.json' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['import', 'node', 'default', 'types'],
      extensions: ['.ts', '.tsx', '.mjs', '.js', '.json'],
    },
  },
};
