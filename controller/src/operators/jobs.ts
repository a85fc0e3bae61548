/** What is done for operators by itself, for the table of jobs. */
export { forgetCommands } from './keys.ts';
