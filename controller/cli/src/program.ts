/** The command as a whole: from arguments to an exit code. Nothing here reads the process. */
import { KatafractError } from '@katafract/shared/errors';
import { Command, CommanderError } from 'commander';
import { Context, EXIT } from './command.ts';
import { accountCommands } from './commands/accounts.ts';
import { keyCommands } from './commands/keys.ts';
import { machineCommands } from './commands/machines.ts';
import { nodeCommands } from './commands/nodes.ts';
import { upkeepCommands } from './commands/upkeep.ts';
import type { Io } from './io.ts';
import { UsageError } from './settings.ts';
import { clean } from './text.ts';

const AFTER = `
The controller is at KATAFRACT_URL (default: http://127.0.0.1:8080). The operator token is read from the file that
KATAFRACT_OPERATOR_TOKEN_FILE names, or from KATAFRACT_OPERATOR_TOKEN; never from the command line.
Exit codes: 0 done, 1 a problem, 2 used wrongly, 3 not reached within --wait.`;

/** @param argv without node and script @returns the exit code */
export async function run(argv: readonly string[], io: Io): Promise<number> {
  let context: Context | null = null;
  const program = new Command('katafract')
    .description('Operate a Katafract fleet')
    .option('--json', 'for machines: whole answers, and problems as JSON')
    .exitOverride()
    .configureOutput({
      writeOut: (text) => io.out(text.trimEnd()),
      writeErr: (text) => io.err(text.trimEnd()),
    })
    .showHelpAfterError('(--help explains)')
    .addHelpText('after', AFTER);
  const json = () => program.opts<{ json?: true }>().json === true;
  const act =
    <Args extends unknown[]>(task: (context: Context, ...args: Args) => Promise<void>) =>
    (...args: Args) => {
      context = new Context(io, json());
      return task(context, ...args);
    };
  for (const register of [nodeCommands, machineCommands, upkeepCommands, accountCommands, keyCommands])
    register(program, act);
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return (context as Context | null)?.exit ?? EXIT.done;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
    io.err(problemText(error, json()));
    return error instanceof UsageError ? EXIT.usage : EXIT.problem;
  }
}

function problemText(error: unknown, json: boolean): string {
  const known = error instanceof KatafractError;
  const code = known ? error.code : String((error as NodeJS.ErrnoException).code ?? 'internal');
  const detail = clean(error instanceof Error ? error.message : String(error));
  const errors = known ? ((error.detail?.errors ?? []) as { path: string; message: string }[]) : [];
  if (json) {
    const status = known ? error.status : undefined;
    return JSON.stringify({ code, detail, status, ...(errors.length > 0 ? { errors } : {}) });
  }
  const lines = errors.map(({ path, message }) => `  ${clean(path)}: ${clean(message)}`);
  return [`katafract: ${detail} (${clean(code)})`, ...lines].join('\n');
}
