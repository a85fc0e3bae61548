/** Starts a small network, says its id, and hangs: for the test that kills its owner. */
import { Network } from './lab.ts';

const network = await Network.start({ exits: [{ name: 'lost-1', region: 'fra' }], devices: 1 });
await network.exit('lost-1').exec('wireguard-go', ['wg0'], { env: { LOG_LEVEL: '' } });
process.stdout.write(`${network.id} ${network.folder}\n`);
setInterval(() => undefined, 60_000);
