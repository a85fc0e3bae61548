/** HTTP of drains: operators empty a node, watch how far that is, halt it, or call it off. */
import { createRoute, z } from '@hono/zod-openapi';
import { NodeId } from '@katafract/shared/units';
import type { MiddlewareHandler } from 'hono';
import { type Api, type AppEnv, json, jsonBody, operatorOf, problems, security } from '../platform/api.ts';
import { type DrainDeps, type DrainStep, readDrain, startDrain, stepDrain } from './drains.ts';
import { DRAIN_STATES } from './tables.ts';

const DrainView = z.object({
  node: NodeId,
  state: z.enum(DRAIN_STATES),
  wantedBy: z.string(),
  startedAt: z.iso.datetime(),
  endedAt: z.iso.datetime().nullable(),
  /** When the node should be empty. */
  deadline: z.iso.datetime().nullable(),
  /** The deadline is over and the node is not empty. */
  overdue: z.boolean(),
  /** Peers it had at the start, and those of them that were given other exits. */
  total: z.number().int(),
  moved: z.number().int(),
  /** Peers still to be given other exits. */
  waiting: z.number().int(),
  /** Peers with other exits that this one still answers, until their devices have had time to switch. */
  leaving: z.number().int(),
  /** Of those waiting, peers that no other exit could take at the last look. */
  stranded: z.number().int(),
});
/** Postgres could keep other years too; they can only be a slip. */
const Deadline = z.iso.datetime().refine((text) => {
  const at = Date.parse(text);
  return at > 946_684_800_000 && at < 32_503_680_000_000;
}, 'a time between the years 2000 and 3000');
const DrainInput = z.strictObject({ deadline: Deadline.optional() });
const byNode = z.object({ id: NodeId });

const STEPS: Readonly<Record<DrainStep, string>> = {
  pause: 'Halt a drain: no further peers are moved',
  resume: 'Go on with a drain that was halted',
  cancel: 'Call a drain off: what has moved stays where it is, and the node is what it was before',
};

export function drainRoutes(
  api: Api,
  deps: DrainDeps & { readonly requireOperator: MiddlewareHandler<AppEnv> },
): void {
  const common = {
    tags: ['Operators'],
    security: security.operator,
    middleware: [deps.requireOperator],
  };
  const start = createRoute({
    ...common,
    method: 'post',
    path: '/v1/admin/nodes/{id}/drain',
    summary: 'Empty a node, make before break',
    description:
      'Its peers are given other exits, which are told first; it answers them until these have said that they do and ' +
      'the devices have had time to switch, but not beyond the deadline. Repeated, it sets another deadline.',
    request: { params: byNode, body: { ...jsonBody(DrainInput), required: false } },
    responses: { 200: json(DrainView, 'The drain'), ...problems(400, 401, 404, 409, 413) },
  });
  api.openapi(start, async (c) => {
    const { deadline } = c.req.valid('json') ?? {};
    const by = deadline === undefined ? undefined : new Date(deadline);
    return c.json(await startDrain(deps, c.req.valid('param').id, by, operatorOf(c).name), 200);
  });
  const read = createRoute({
    ...common,
    method: 'get',
    path: '/v1/admin/nodes/{id}/drain',
    summary: "Read how far a node's last drain is",
    request: { params: byNode },
    responses: { 200: json(DrainView, 'The drain'), ...problems(400, 401, 404) },
  });
  api.openapi(read, async (c) => c.json(await readDrain(deps, c.req.valid('param').id), 200));
  for (const step of ['pause', 'resume', 'cancel'] as const) {
    const route = createRoute({
      ...common,
      method: 'post',
      path: `/v1/admin/nodes/{id}/drain/${step}`,
      summary: STEPS[step],
      request: { params: byNode },
      responses: { 200: json(DrainView, 'The drain'), ...problems(400, 401, 404, 409) },
    });
    api.openapi(route, async (c) =>
      c.json(await stepDrain(deps, c.req.valid('param').id, step, operatorOf(c).name), 200),
    );
  }
}
