#!/usr/bin/env node
/**
 * The root helper of the agent: one pass over what the agent asks of its machine, then it ends. systemd starts it when
 * a request appears (a .path unit), so nothing with root's rights runs in between.
 */
import { join } from 'node:path';
import { Command } from 'commander';
import { type Exec, systemExec } from '../host/exec.ts';
import { logger } from '../host/log.ts';
import { helperMemory, openRequests, systemFiles } from '../host/requests.ts';
import { VERSION } from '../version.ts';
import { serve } from './serve.ts';

interface Options {
  stateDir: string;
  root: string;
  commands?: string;
  patienceSeconds: string;
}

/** Looks a test's own apt-get and systemctl up in a folder instead of the system's path. */
function within(exec: Exec, folder: string | undefined): Exec {
  if (folder === undefined) return exec;
  return { run: (program, args, options) => exec.run(join(folder, program), args, options) };
}

async function main({ stateDir, root, commands, patienceSeconds }: Options): Promise<void> {
  const log = logger((line) => process.stdout.write(line), 'info');
  const requests = await openRequests(stateDir);
  if (!requests) return;
  try {
    await serve({
      exec: within(systemExec, commands),
      requests,
      memory: helperMemory(root),
      files: systemFiles(root),
      now: Date.now,
      sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
      log,
      patienceMs: Number(patienceSeconds) * 1000,
    });
  } finally {
    await requests.close();
  }
}

await new Command('katafract-helper')
  .description('Takes up what the agent asks of its machine; see katafract-agent')
  .version(VERSION)
  .option('--state-dir <path>', "the agent's state", '/var/lib/katafract-agent')
  .option('--root <path>', 'of the system whose files are written', '/')
  .option('--commands <folder>', 'where apt-get, dpkg-query and systemctl are, instead of the path')
  .option('--patience-seconds <n>', 'for another version of the agent to reach the controller', '60')
  .action(main)
  .parseAsync();
