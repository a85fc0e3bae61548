/**
 * The lab's hands inside one host: a process in the host's namespaces that opens sockets there on request. Plain
 * JavaScript, because it is started once per host and must start fast. Requests come over Node's IPC channel as
 * `{id, op, ...}` and are answered with `{id, result}` or `{id, error}`.
 */
import { createSocket } from 'node:dgram';
import { request } from 'node:http';
import { connect, createServer } from 'node:net';

/** Listeners by number: what each has received, and how to end it. */
const listeners = new Map();
const plain = (address) => address?.replace(/^::ffff:/, '') ?? '';

function http({ method = 'GET', url, headers = {}, body, timeoutMs = 5000 }) {
  return new Promise((resolve, reject) => {
    const call = request(url, { method, headers, timeout: timeoutMs, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk) => {
        text += chunk;
      });
      response.on('end', () =>
        resolve({ status: response.statusCode, headers: response.headers, body: text }),
      );
      response.on('error', reject);
    });
    call.on('timeout', () => call.destroy(new Error('ETIMEDOUT')));
    call.on('error', reject);
    call.end(body);
  });
}

/** What a scanner learns about one port: `open`, `timeout`, or the error code, e.g. `ECONNREFUSED`. */
function probe({ address, port, timeoutMs = 1000 }) {
  return new Promise((resolve) => {
    const socket = connect({ host: address, port });
    const end = (outcome) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(outcome);
    };
    const timer = setTimeout(() => end('timeout'), timeoutMs);
    socket.once('connect', () => end('open'));
    socket.once('error', (error) => end(error.code ?? 'error'));
  });
}

/**
 * Sends datagrams, each a byte longer than the one before, since a tunnel may give its kernel those of equal length as
 * one packet; with `replyMs` waits for one answer and returns it as text, or null.
 */
function udp({ address, port, payload = 'x', count = 1, localAddress, localPort = 0, replyMs = 0 }) {
  return new Promise((resolve, reject) => {
    const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
    const end = (result) => {
      clearTimeout(timer);
      socket.close();
      resolve(result);
    };
    let timer;
    socket.on('error', (error) => (replyMs > 0 ? end(null) : reject(error)));
    socket.on('message', (message) => end(message.toString()));
    socket.bind({ port: localPort, address: localAddress }, () => {
      let left = count;
      for (let sent = 0; sent < count; sent++) {
        // a packet that the host itself refuses to route is an outcome of the test, not a failure of it
        socket.send(payload + 'x'.repeat(sent), port, address, () => {
          left--;
          if (left === 0 && replyMs === 0) end(null);
        });
      }
      if (replyMs > 0) timer = setTimeout(() => end(null), replyMs);
    });
  });
}

/** One datagram from each of so many ports: as many flows. */
async function flows({ address, port, count }) {
  for (let sent = 0; sent < count; sent++) await udp({ address, port });
  return null;
}

/** Ports that the system gives to so many sockets which ask for none in particular. */
async function ports({ count }) {
  const given = [];
  for (let at = 0; at < count; at++) {
    const socket = createSocket('udp4');
    await new Promise((resolve) => socket.bind(0, resolve));
    given.push(socket.address().port);
    socket.close();
  }
  return given;
}

/** Connections that stay open until they are closed: by number, what came back and who waits for more. */
const connections = new Map();

function hold({ id, address, port, timeoutMs = 3000 }) {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: address, port });
    const timer = setTimeout(() => socket.destroy(new Error('ETIMEDOUT')), timeoutMs);
    const fail = (error) => reject(error ?? new Error('closed'));
    socket.once('error', fail).once('close', fail);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket
        .removeAllListeners('error')
        .removeAllListeners('close')
        .on('error', () => socket.destroy());
      connections.set(id, socket);
      resolve({ connection: id, localPort: socket.localPort });
    });
  });
}

/** Says something on a connection; resolves with what comes back, or null where nothing does. */
function say({ connection, text, timeoutMs = 1000 }) {
  const socket = connections.get(connection);
  return new Promise((resolve) => {
    const end = (answer) => {
      clearTimeout(timer);
      socket.off('data', heard);
      resolve(answer);
    };
    const heard = (data) => end(data.toString());
    const timer = setTimeout(() => end(null), timeoutMs);
    socket.on('data', heard);
    socket.write(text);
  });
}

function hangUp({ connection }) {
  connections.get(connection)?.destroy();
  return connections.delete(connection);
}

function listen({ id, transport, port, address, reply }) {
  const seen = { count: 0, peers: [], ports: [] };
  const note = (peer, peerPort) => {
    seen.count++;
    if (seen.peers.length >= 1000) return;
    seen.peers.push(plain(peer));
    seen.ports.push(peerPort);
  };
  if (transport === 'udp') return listenUdp(id, seen, note, { port, address, reply });
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      note(socket.remoteAddress, socket.remotePort);
      socket.on('error', () => socket.destroy()); // a scanner's reset
      if (reply === 'peer') answerHttp(socket);
      else if (reply === 'echo') socket.pipe(socket);
      else socket.end(reply ?? '');
    });
    server.once('error', reject);
    server.listen({ port, host: address, ipv6Only: address === '::' }, () => {
      listeners.set(id, { seen, close: () => server.close() });
      resolve({ listener: id, port: server.address().port });
    });
  });
}

/** A web server in a few lines: says which address it was called from. */
function answerHttp(socket) {
  socket.once('data', () => {
    const body = plain(socket.remoteAddress);
    socket.end(
      `HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
    );
  });
}

function listenUdp(id, seen, note, { port, address, reply }) {
  return new Promise((resolve, reject) => {
    const socket = createSocket({
      type: address?.includes(':') ? 'udp6' : 'udp4',
      ipv6Only: address === '::',
    });
    socket.once('error', reject);
    socket.on('message', (message, from) => {
      note(from.address, from.port);
      if (reply === undefined) return;
      const answers = { peer: plain(from.address), echo: message };
      socket.send(answers[reply] ?? reply, from.port, from.address);
    });
    socket.bind(port, address, () => {
      listeners.set(id, { seen, close: () => socket.close() });
      resolve({ listener: id, port: socket.address().port });
    });
  });
}

/** Connections to a socket that was opened outside of this host go on to an address inside of it. */
function forward({ address, port }, server) {
  server.on('connection', (outside) => {
    const inside = connect({ host: address, port });
    const end = () => {
      outside.destroy();
      inside.destroy();
    };
    outside.setNoDelay(true);
    inside.setNoDelay(true);
    outside.on('error', end).on('close', end);
    inside.on('error', end).on('close', end);
    outside.pipe(inside);
    inside.pipe(outside);
  });
  return true;
}

/** The mirror of `forward`: a socket opened in this host, which its owner outside answers. */
function expose({ port }) {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen({ port, host: '127.0.0.1' }, () => resolve(new HandedOver(server)));
  });
}

/** A result that is a socket: it goes along with the answer, and is then the owner's alone. */
class HandedOver {
  constructor(server) {
    this.server = server;
  }
}

function received({ listener, reset = false }) {
  const { seen } = listeners.get(listener);
  const copy = { count: seen.count, peers: [...seen.peers], ports: [...seen.ports] };
  if (reset) {
    seen.count = 0;
    seen.peers = [];
    seen.ports = [];
  }
  return copy;
}

function close({ listener }) {
  listeners.get(listener)?.close();
  return listeners.delete(listener);
}

const operations = {
  http,
  probe,
  udp,
  flows,
  ports,
  hold,
  say,
  hangUp,
  listen,
  forward,
  expose,
  received,
  close,
};

process.on('message', async (message, handle) => {
  try {
    const result = await operations[message.op](message, handle);
    if (result instanceof HandedOver) {
      process.send({ id: message.id }, result.server, {}, () => result.server.close());
    } else process.send({ id: message.id, result });
  } catch (error) {
    process.send({ id: message.id, error: error.code ?? error.message });
  }
});
process.on('disconnect', () => process.exit(0));
process.send('ready');
