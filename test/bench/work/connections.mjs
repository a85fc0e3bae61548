/**
 * TCP connections one after the other, as fast as they come: `connections.mjs serve ADDRESS PORT`, and
 * `connections.mjs open ADDRESS PORT SECONDS`, which prints how many were opened. Each ends with a reset, so that neither
 * side runs out of ports.
 */
import { connect, createServer } from 'node:net';

const AT_ONCE = 32;
const [what, host, port, seconds] = process.argv.slice(2);

function serve() {
  const server = createServer((socket) => socket.on('error', () => undefined).resume());
  server.listen({ host, port: Number(port), backlog: 1024 }, () => console.log('ready'));
}

function open() {
  const end = performance.now() + Number(seconds) * 1000;
  let opened = 0;
  let running = AT_ONCE;
  const next = () => {
    if (performance.now() >= end) {
      running--;
      if (running === 0) {
        console.log(opened);
        process.exit(0);
      }
      return;
    }
    const socket = connect({ host, port: Number(port) });
    socket.on('connect', () => {
      opened++;
      socket.resetAndDestroy();
    });
    socket.on('error', () => undefined);
    socket.on('close', next);
  };
  for (let started = 0; started < AT_ONCE; started++) next();
}

if (what === 'serve') serve();
else open();
