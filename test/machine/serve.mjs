/** Serves the files below a folder: `node serve.mjs <folder> <address> <port>`. */
import { createReadStream, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { join, normalize } from 'node:path';

const [folder, address, port] = process.argv.slice(2);
createServer((request, response) => {
  const path = join(folder, normalize(decodeURIComponent(new URL(request.url, 'http://files').pathname)));
  const found = statSync(path, { throwIfNoEntry: false });
  if (!found?.isFile()) return response.writeHead(404).end();
  response.writeHead(200, { 'content-length': found.size });
  return createReadStream(path).pipe(response);
}).listen(Number(port), address, () => console.log('serving'));
