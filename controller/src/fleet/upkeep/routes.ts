/** HTTP of upkeep: operators roll the agent's releases out, and have nodes rebooted in their turn. */
import { createRoute, z } from '@hono/zod-openapi';
import { NodeId } from '@katafract/shared/units';
import { AgentVersion } from '@katafract/shared/upkeep';
import type { MiddlewareHandler } from 'hono';
import {
  type Api,
  type AppEnv,
  IdempotencyKeyHeader,
  json,
  jsonBody,
  operatorOf,
  problems,
  security,
} from '../../platform/api.ts';
import type { Reboots } from './reboots.ts';
import type { RolloutCommand, Rollouts } from './rollouts.ts';
import { REBOOT_STATES, ROLLOUT_NODE_STATES, ROLLOUT_STATES } from './tables.ts';

export interface UpkeepRoutesDeps {
  readonly rollouts: Rollouts;
  readonly reboots: Reboots;
  readonly requireOperator: MiddlewareHandler<AppEnv>;
}

const time = z.iso.datetime();
const RolloutInput = z.strictObject({
  version: AgentVersion,
  /** How long each wave must be well before the next begins. */
  soakSeconds: z.number().int().min(0).max(86_400).default(300),
  /** How long a node may take to run the version. */
  timeoutSeconds: z.number().int().min(5).max(86_400).default(600),
  /** Nodes that may fail after the canaries; one in a hundred, at least one, where absent. */
  maxFailures: z.number().int().min(0).max(100_000).optional(),
});
const RolloutView = z.object({
  id: z.uuid(),
  version: z.string(),
  state: z.enum(ROLLOUT_STATES),
  /** Where it stands, in plain words. */
  standing: z.string(),
  /** Waves are 0 (the canaries) to `waves` - 1. */
  wave: z.number().int(),
  waves: z.number().int(),
  waveSince: time,
  soakSeconds: z.number().int(),
  timeoutSeconds: z.number().int(),
  maxFailures: z.number().int(),
  wantedBy: z.string(),
  reason: z.string().nullable(),
  startedAt: time,
  endedAt: time.nullable(),
  /** Nodes by how far they are. */
  counts: z.partialRecord(z.enum(ROLLOUT_NODE_STATES), z.number().int()),
});
const RolloutDetail = RolloutView.extend({
  nodes: z.array(
    z.object({
      node: NodeId,
      wave: z.number().int(),
      state: z.enum(ROLLOUT_NODE_STATES),
      before: z.string().nullable(),
      since: time,
      reason: z.string().nullable(),
    }),
  ),
});
const RebootInput = z.strictObject({
  /** Do not wait for the night; everything else holds. */
  anyTime: z.boolean().default(false),
});
const RebootView = z.object({
  id: z.uuid(),
  node: NodeId,
  state: z.enum(REBOOT_STATES),
  wantedBy: z.string(),
  anyTime: z.boolean(),
  wantedAt: time,
  leasedAt: time.nullable(),
  until: time.nullable(),
  endedAt: time.nullable(),
  reason: z.string().nullable(),
  /** When an operator has seen to its failure; until then no other node is rebooted. */
  clearedAt: time.nullable(),
  /** Why it waits, in plain words. */
  waitsFor: z.string().nullable(),
});
const RebootList = z.object({
  /** Why nothing is rebooted at all; null where things are. */
  stopped: z.string().nullable(),
  items: z.array(RebootView),
});
const byId = z.object({ id: z.uuid() });

const COMMANDS: Readonly<Record<RolloutCommand, string>> = {
  pause: 'Halt a rollout: no further nodes are told',
  resume: 'Go on with a rollout that was halted',
  cancel: 'End a rollout where it is: nodes keep the version they were told',
  rollback: 'Have every node of a rollout go back to the version it had',
};

export function upkeepRoutes(api: Api, deps: UpkeepRoutesDeps): void {
  rolloutRoutes(api, deps);
  rebootRoutes(api, deps);
}

const commonOf = ({ requireOperator }: UpkeepRoutesDeps) => ({
  tags: ['Operators'],
  security: security.operator,
  middleware: [requireOperator],
});

function rolloutRoutes(api: Api, deps: UpkeepRoutesDeps): void {
  const { rollouts } = deps;
  const common = commonOf(deps);
  const start = createRoute({
    ...common,
    method: 'post',
    path: '/v1/admin/rollouts',
    summary: 'Roll a version of the agent out, in waves',
    description:
      'First a few canaries, then region by region, never two neighbour regions at once and never below the minimum ' +
      'of exits of a region. A wave begins when the one before was well for a while. If a canary fails, or too many ' +
      'nodes after them, everything goes back by itself.',
    request: { headers: IdempotencyKeyHeader, body: jsonBody(RolloutInput) },
    responses: { 201: json(RolloutView, 'The rollout'), ...problems(400, 401, 409, 413, 422) },
  });
  api.openapi(start, async (c) => {
    const idempotencyKey = c.req.valid('header')['idempotency-key'];
    const asked = { operator: operatorOf(c).name, idempotencyKey };
    return c.json(RolloutView.parse(await rollouts.start(c.req.valid('json'), asked)), 201);
  });
  const list = createRoute({
    ...common,
    method: 'get',
    path: '/v1/admin/rollouts',
    summary: 'List the last rollouts, the newest first',
    responses: { 200: json(z.object({ items: z.array(RolloutView) }), 'Rollouts'), ...problems(401) },
  });
  api.openapi(list, async (c) => c.json({ items: await rollouts.list() }, 200));
  const read = createRoute({
    ...common,
    method: 'get',
    path: '/v1/admin/rollouts/{id}',
    summary: 'Read how far a rollout is, node by node',
    request: { params: byId },
    responses: { 200: json(RolloutDetail, 'The rollout'), ...problems(400, 401, 404) },
  });
  api.openapi(read, async (c) => c.json(await rollouts.read(c.req.valid('param').id), 200));
  for (const command of ['pause', 'resume', 'cancel', 'rollback'] as const) {
    const route = createRoute({
      ...common,
      method: 'post',
      path: `/v1/admin/rollouts/{id}/${command}`,
      summary: COMMANDS[command],
      request: { params: byId },
      responses: { 200: json(RolloutView, 'The rollout'), ...problems(400, 401, 404, 409) },
    });
    api.openapi(route, async (c) => {
      const { name } = operatorOf(c);
      return c.json(RolloutView.parse(await rollouts.command(c.req.valid('param').id, command, name)), 200);
    });
  }
}

function rebootRoutes(api: Api, deps: UpkeepRoutesDeps): void {
  const { reboots } = deps;
  const common = commonOf(deps);
  const want = createRoute({
    ...common,
    method: 'post',
    path: '/v1/admin/nodes/{id}/reboot',
    summary: 'Have a node reboot when its turn comes',
    description:
      'At night there, while no neighbour region is worked on and enough exits of its own stay. Systems that need a ' +
      'reboot ask for it themselves.',
    request: {
      params: z.object({ id: NodeId }),
      headers: IdempotencyKeyHeader,
      body: { ...jsonBody(RebootInput), required: false },
    },
    responses: { 201: json(RebootView, 'The reboot'), ...problems(400, 401, 404, 409, 413, 422) },
  });
  api.openapi(want, async (c) => {
    const idempotencyKey = c.req.valid('header')['idempotency-key'];
    const { anyTime } = c.req.valid('json') ?? { anyTime: false };
    const asked = { operator: operatorOf(c).name, idempotencyKey };
    return c.json(await reboots.want(c.req.valid('param').id, anyTime ?? false, asked), 201);
  });
  const list = createRoute({
    ...common,
    method: 'get',
    path: '/v1/admin/reboots',
    summary: 'List reboots that are wanted, under way or lately over',
    responses: { 200: json(RebootList, 'Reboots'), ...problems(401) },
  });
  api.openapi(list, async (c) => c.json(await reboots.list(), 200));
  const cancel = createRoute({
    ...common,
    method: 'delete',
    path: '/v1/admin/reboots/{id}',
    summary: 'Call a reboot off that is not leased yet',
    request: { params: byId },
    responses: { 200: json(RebootView, 'The reboot'), ...problems(400, 401, 404, 409) },
  });
  api.openapi(cancel, async (c) =>
    c.json(await reboots.cancel(c.req.valid('param').id, operatorOf(c).name), 200),
  );
  const clear = createRoute({
    ...common,
    method: 'post',
    path: '/v1/admin/reboots/{id}/clear',
    summary: 'Say that a failed reboot was seen to, so that others may go again',
    request: { params: byId },
    responses: { 200: json(RebootView, 'The reboot'), ...problems(400, 401, 404) },
  });
  api.openapi(clear, async (c) =>
    c.json(await reboots.clear(c.req.valid('param').id, operatorOf(c).name), 200),
  );
}
