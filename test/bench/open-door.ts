/**
 * The controller's API twice in one process, on one database: once as it ships, and once with a door that lets every
 * request in as one subscription, without a look at its token. What the second is faster by is the price of verifying.
 */
import { once } from 'node:events';
import { Jkt } from '@katafract/shared/dpop';
import { loadConfig } from '../../controller/src/config.ts';
import { createContext } from '../../controller/src/context.ts';
import { createHttp } from '../../controller/src/http.ts';
import { createLogger } from '../../controller/src/platform/log.ts';
import { listenHttp } from '../../controller/src/platform/server.ts';
import type { Sigils } from '../../controller/src/sigil/sigil.ts';

const log = createLogger('warn', { write: (line) => process.stderr.write(line) });
const config = loadConfig(process.env);
const ctx = await createContext(config, { log });
const expiresAt = Date.now() + 86_400_000;
const device = Jkt.parse(process.env.DEVICE);
const subscriptionId = await ctx.db.transaction((tx) =>
  ctx.sigils.openSubscription(tx, { tier: 'pro', expiresAt }),
);
const { sigil } = await ctx.sigils.issue({ subscriptionId, jkt: device }, 'bench');

const onFault = (err: unknown) => log.error({ err }, 'a request failed outside of the app');
const identity = { sigilId: subscriptionId, subscriptionId, tier: 'pro', expiresAt, device } as const;
// all that the route measured asks of this domain
const unlocked = { authenticate: async () => identity } as unknown as Sigils;
const verified = await listenHttp(createHttp(ctx), config.apiListen, true, onFault);
const open = await listenHttp(createHttp({ ...ctx, sigils: unlocked }), config.apiListen, true, onFault);
console.log(`listening ${JSON.stringify({ verified: verified.url, open: open.url, sigil })}`);
await once(process, 'SIGTERM');
await Promise.all([verified.drain(1000), open.drain(1000)]);
await ctx.close();
