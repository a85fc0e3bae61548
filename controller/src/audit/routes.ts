/** The operators' view of the audit log. */
import { createRoute, z } from '@hono/zod-openapi';
import { type Api, decodeCursor, json, PageQuery, page, problems, security } from '../platform/api.ts';
import { AUDIT_ACTIONS, type Audit } from './audit.ts';

const Entry = z
  .object({
    id: z.number().int(),
    at: z.iso.datetime(),
    actor: z.string(),
    action: z.string(),
    subject: z.string(),
    detail: z.record(z.string(), z.unknown()),
  })
  .openapi('AuditEntry');

const listRoute = createRoute({
  method: 'get',
  path: '/v1/admin/audit',
  tags: ['Operators'],
  summary: 'What was done, newest first',
  security: security.operator,
  request: {
    query: PageQuery.extend({
      subject: z
        .string()
        .regex(/^[a-z_]{1,32}:[A-Za-z0-9._-]{1,128}$/, 'kind:id, such as peer:…')
        .optional(),
      action: z.enum(AUDIT_ACTIONS).optional(),
      actor: z
        .string()
        .regex(/^[A-Za-z0-9._:-]{1,160}$/)
        .optional(),
    }),
  },
  responses: {
    200: json(z.object({ items: z.array(Entry), next: z.string().nullable() }), 'A page of the log'),
    ...problems(400, 401),
  },
});

const Position = z.number().int().min(1).max(Number.MAX_SAFE_INTEGER);

export function auditRoutes(api: Api, { audit }: { audit: Audit }): void {
  api.openapi(listRoute, async (c) => {
    const { cursor, limit, ...filter } = c.req.valid('query');
    const before = decodeCursor(cursor, Position);
    const { items, next } = page(await audit.list(filter, { before, limit }), limit, (last) => last.id);
    return c.json(
      { items: items.map(({ at, ...entry }) => ({ ...entry, at: at.toISOString() })), next },
      200,
    );
  });
}
