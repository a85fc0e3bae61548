/**
 * The test projects. One run packs the files of all of them onto four workers, so that tests which wait (the lab, the
 * fleet's patience with silent nodes) and tests which compute (the model) share two cores. Time limits only end what hangs: no test asserts how long
 * something took.
 */
import { defineConfig } from 'vitest/config';

const common = { pool: 'forks' as const, environment: 'node' as const, hookTimeout: 300_000 };

export default defineConfig({
  test: {
    globalSetup: ['test/vitest-setup.ts'],
    maxWorkers: 4,
    projects: [
      {
        test: {
          ...common,
          name: 'unit',
          include: ['{shared,agent,controller}/**/src/**/*.test.ts'],
          testTimeout: 300_000,
        },
      },
      {
        test: {
          ...common,
          name: 'http',
          include: ['test/{http,simulation}/*.test.ts'],
          testTimeout: 300_000,
        },
      },
      { test: { ...common, name: 'model', include: ['test/model/*.test.ts'], testTimeout: 500_000 } },
      {
        test: {
          ...common,
          name: 'lab',
          include: ['test/*.test.ts'],
          testTimeout: 400_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
