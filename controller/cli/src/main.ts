#!/usr/bin/env node
/** katafract: the operators' command. Wires the process to program.ts. */
import { homedir } from 'node:os';
import { run } from './program.ts';

const { stderr } = process;

process.exitCode = await run(process.argv.slice(2), {
  env: process.env,
  home: homedir(),
  clock: {
    now: () => Date.now(),
    // unlike a server's, these timers keep the process: there is nothing else to do meanwhile
    after(ms, task) {
      const timer = setTimeout(task, ms);
      return () => clearTimeout(timer);
    },
  },
  out: (text) => void process.stdout.write(`${text}\n`),
  err: (text) => void stderr.write(`${text}\n`),
  live: stderr.isTTY
    ? (line) => void stderr.write(`\r\x1b[2K${line.slice(0, (stderr.columns ?? 80) - 1)}`)
    : null,
});
