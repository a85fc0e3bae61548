/**
 * The API's reference page at /docs: Swagger UI out of its npm package, served by ourselves. Nothing is loaded from
 * anywhere else, and the Content-Security-Policy says so to the browser.
 */
import { readFile } from 'node:fs/promises';
import { createRequire as requireFrom } from 'node:module';
import { dirname, join } from 'node:path';
import type { Api } from './api.ts';

const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE = `<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Katafract API</title>
  <link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="/docs/swagger-ui-bundle.js"></script>
  <script src="/docs/start.js"></script>
</body>
</html>
`;

const START = `SwaggerUIBundle({
  url: '/openapi.json',
  dom_id: '#swagger-ui',
  deepLinking: true,
  validatorUrl: null,
  persistAuthorization: false,
});
`;

const ASSETS: Readonly<Record<string, string>> = {
  'swagger-ui.css': 'text/css; charset=utf-8',
  'swagger-ui-bundle.js': 'text/javascript; charset=utf-8',
};

export function mountDocs(api: Api): void {
  const page = (body: string, type: string) => ({ body, type });
  const pages = {
    '/docs': page(PAGE, 'text/html; charset=utf-8'),
    '/docs/start.js': page(START, 'text/javascript; charset=utf-8'),
  };
  for (const [path, { body, type }] of Object.entries(pages)) {
    api.get(path, (c) => {
      c.header('Content-Security-Policy', POLICY);
      c.header('Content-Type', type);
      return c.body(body);
    });
  }
  const folder = () => dirname(requireFrom(import.meta.url).resolve('swagger-ui-dist/package.json'));
  for (const [name, type] of Object.entries(ASSETS)) {
    api.get(`/docs/${name}`, async (c) => {
      c.header('Content-Type', type);
      c.header('Cache-Control', 'public, max-age=86400');
      return c.body(await readFile(join(folder(), name)));
    });
  }
}
