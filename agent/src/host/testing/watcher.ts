/** Says `ready`, and from then on `changed` whenever somebody changes the host that it runs on. */
import { systemClock } from '@katafract/shared/clock';
import { watchHost } from '../watch.ts';

const say = (text: string) => process.stdout.write(`${text}\n`);
const log = {
  info: () => undefined,
  warn: (fields: object) => say(JSON.stringify(fields)),
  error: () => undefined,
};
watchHost(systemClock, log, () => say('changed'));
say('ready');
