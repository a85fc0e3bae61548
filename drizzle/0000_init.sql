CREATE TABLE "audit_log" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "audit_log_id_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 START WITH 1 CACHE 1),
	"at" timestamp with time zone DEFAULT now() NOT NULL,
	"actor" text NOT NULL,
	"action" text NOT NULL,
	"subject" text NOT NULL,
	"detail" jsonb NOT NULL
);
--> statement-breakpoint
CREATE TABLE "claims" (
	"claim" uuid PRIMARY KEY NOT NULL,
	"subscription_id" uuid NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "claims_subscription_id_unique" UNIQUE("subscription_id")
);
--> statement-breakpoint
CREATE TABLE "entitlements" (
	"id" uuid PRIMARY KEY NOT NULL,
	"source" text NOT NULL,
	"reference" text NOT NULL,
	"subscription_id" uuid,
	"claim" uuid,
	"tier" text,
	"standing" text NOT NULL,
	"renews" boolean NOT NULL,
	"expires_at" timestamp with time zone NOT NULL,
	"contested" boolean DEFAULT false NOT NULL,
	"live" boolean NOT NULL,
	"read_at" timestamp with time zone NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "entitlements_reference" UNIQUE("source","reference")
);
--> statement-breakpoint
CREATE TABLE "store_cursors" (
	"store" text PRIMARY KEY NOT NULL,
	"through" timestamp with time zone NOT NULL
);
--> statement-breakpoint
CREATE TABLE "store_messages" (
	"store" text NOT NULL,
	"event_id" text NOT NULL,
	"type" text NOT NULL,
	"reference" text,
	"received_at" timestamp with time zone NOT NULL,
	"handled_at" timestamp with time zone,
	CONSTRAINT "store_messages_store_event_id_pk" PRIMARY KEY("store","event_id")
);
--> statement-breakpoint
CREATE TABLE "store_reads" (
	"store" text NOT NULL,
	"reference" text NOT NULL,
	"wanted" integer DEFAULT 1 NOT NULL,
	"since" timestamp with time zone NOT NULL,
	"due_at" timestamp with time zone NOT NULL,
	"background" boolean NOT NULL,
	"attempts" integer DEFAULT 0 NOT NULL,
	"fence" uuid,
	"leased_until" timestamp with time zone,
	CONSTRAINT "store_reads_store_reference_pk" PRIMARY KEY("store","reference")
);
--> statement-breakpoint
CREATE TABLE "vouchers" (
	"code_hash" text PRIMARY KEY NOT NULL,
	"id" uuid NOT NULL,
	"tier" text NOT NULL,
	"days" integer NOT NULL,
	"redeem_before" timestamp with time zone NOT NULL,
	"claim" uuid,
	"redeemed_at" timestamp with time zone,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "vouchers_id_unique" UNIQUE("id")
);
--> statement-breakpoint
CREATE TABLE "demand_samples" (
	"region_id" text NOT NULL,
	"at" timestamp with time zone NOT NULL,
	"peers" integer NOT NULL,
	"capacity" integer NOT NULL,
	CONSTRAINT "demand_samples_region_id_at_pk" PRIMARY KEY("region_id","at")
);
--> statement-breakpoint
CREATE TABLE "machines" (
	"id" uuid PRIMARY KEY NOT NULL,
	"region_id" text NOT NULL,
	"node_id" text NOT NULL,
	"provider" text NOT NULL,
	"growth" jsonb NOT NULL,
	"state" text NOT NULL,
	"reason" text NOT NULL,
	"wanted_by" text NOT NULL,
	"replaces" text,
	"ref" text,
	"address" text,
	"tries" integer DEFAULT 0 NOT NULL,
	"problem" text,
	"next_try_at" timestamp with time zone NOT NULL,
	"since" timestamp with time zone NOT NULL,
	"wanted_at" timestamp with time zone NOT NULL,
	"ended_at" timestamp with time zone,
	CONSTRAINT "machines_state" CHECK ("machines"."state" in ('wanted', 'creating', 'booting', 'serving', 'leaving', 'removing', 'gone', 'failed'))
);
--> statement-breakpoint
CREATE TABLE "drains" (
	"id" uuid PRIMARY KEY NOT NULL,
	"node_id" text NOT NULL,
	"state" text NOT NULL,
	"wanted_by" text NOT NULL,
	"before" text NOT NULL,
	"deadline" timestamp with time zone,
	"total" integer NOT NULL,
	"moved" integer DEFAULT 0 NOT NULL,
	"stranded" integer DEFAULT 0 NOT NULL,
	"started_at" timestamp with time zone NOT NULL,
	"ended_at" timestamp with time zone,
	CONSTRAINT "drains_state" CHECK ("drains"."state" in ('running', 'paused', 'cancelled', 'done'))
);
--> statement-breakpoint
CREATE TABLE "join_tokens" (
	"id" uuid PRIMARY KEY NOT NULL,
	"hash" text NOT NULL,
	"region_id" text NOT NULL,
	"node_id" text NOT NULL,
	"endpoint" text,
	"capacity" integer NOT NULL,
	"created_by" text NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"expires_at" timestamp with time zone NOT NULL,
	"used_at" timestamp with time zone,
	"used_by" text,
	CONSTRAINT "join_tokens_hash_unique" UNIQUE("hash")
);
--> statement-breakpoint
CREATE TABLE "node_health" (
	"node_id" text PRIMARY KEY NOT NULL,
	"state" text NOT NULL,
	"reason" text NOT NULL,
	"since" timestamp with time zone NOT NULL,
	"flaps" integer NOT NULL,
	CONSTRAINT "node_health_state" CHECK ("node_health"."state" in ('ok', 'suspect', 'down'))
);
--> statement-breakpoint
CREATE TABLE "node_reports" (
	"node_id" text PRIMARY KEY NOT NULL,
	"applied_lineage" bigint DEFAULT 0 NOT NULL,
	"applied_generation" bigint DEFAULT 0 NOT NULL,
	"agent_version" text,
	"last_seen_at" timestamp with time zone,
	"left_at" timestamp with time zone,
	"health" jsonb
);
--> statement-breakpoint
CREATE TABLE "nodes" (
	"id" text PRIMARY KEY NOT NULL,
	"region_id" text NOT NULL,
	"state" text DEFAULT 'joining' NOT NULL,
	"endpoint" text NOT NULL,
	"public_key" text NOT NULL,
	"identity" jsonb NOT NULL,
	"listen_port" integer NOT NULL,
	"mtu" integer NOT NULL,
	"capacity" integer NOT NULL,
	"bandwidth_mbit" integer,
	"provider" text,
	"peer_count" integer DEFAULT 0 NOT NULL,
	"lineage" bigint DEFAULT 1 NOT NULL,
	"generation" bigint DEFAULT 0 NOT NULL,
	"digest" bit(128) DEFAULT repeat('0', 128)::bit(128) NOT NULL,
	"config_generation" bigint DEFAULT 0 NOT NULL,
	"swept_generation" bigint DEFAULT 0 NOT NULL,
	"upkeep" jsonb,
	"maintenance_until" timestamp with time zone,
	"allow_shrink" boolean DEFAULT false NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"retired_at" timestamp with time zone,
	CONSTRAINT "nodes_public_key_unique" UNIQUE("public_key"),
	CONSTRAINT "nodes_state" CHECK ("nodes"."state" in ('joining', 'active', 'cordoned', 'draining', 'drained', 'retired'))
);
--> statement-breakpoint
CREATE TABLE "placements" (
	"node_id" text NOT NULL,
	"public_key" text NOT NULL,
	"peer_id" uuid,
	"ipv4" text NOT NULL,
	"ipv6" text NOT NULL,
	"role" text NOT NULL,
	"rank" integer NOT NULL,
	"generation" bigint NOT NULL,
	"removed" boolean DEFAULT false NOT NULL,
	"release_at" timestamp with time zone,
	CONSTRAINT "placements_node_id_public_key_pk" PRIMARY KEY("node_id","public_key"),
	CONSTRAINT "placements_tombstone" CHECK ("placements"."removed" = ("placements"."peer_id" is null)),
	CONSTRAINT "placements_role" CHECK ("placements"."role" in ('primary', 'standby', 'leaving'))
);
--> statement-breakpoint
CREATE TABLE "regions" (
	"id" text PRIMARY KEY NOT NULL,
	"name" text NOT NULL,
	"country" text NOT NULL,
	"latitude" double precision NOT NULL,
	"longitude" double precision NOT NULL,
	"time_zone" text,
	"min_exits" integer DEFAULT 0 NOT NULL,
	"growth" jsonb,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "reboots" (
	"id" uuid PRIMARY KEY NOT NULL,
	"node_id" text NOT NULL,
	"state" text NOT NULL,
	"wanted_by" text NOT NULL,
	"any_time" boolean DEFAULT false NOT NULL,
	"wanted_at" timestamp with time zone NOT NULL,
	"leased_at" timestamp with time zone,
	"until" timestamp with time zone,
	"ended_at" timestamp with time zone,
	"reason" text,
	"cleared_at" timestamp with time zone,
	CONSTRAINT "reboots_state" CHECK ("reboots"."state" in ('wanted', 'leased', 'done', 'failed', 'cancelled'))
);
--> statement-breakpoint
CREATE TABLE "rollout_nodes" (
	"rollout_id" uuid NOT NULL,
	"node_id" text NOT NULL,
	"wave" integer NOT NULL,
	"state" text DEFAULT 'waiting' NOT NULL,
	"before" text,
	"since" timestamp with time zone NOT NULL,
	"reason" text,
	CONSTRAINT "rollout_nodes_rollout_id_node_id_pk" PRIMARY KEY("rollout_id","node_id"),
	CONSTRAINT "rollout_nodes_state" CHECK ("rollout_nodes"."state" in ('waiting', 'updating', 'updated', 'failed', 'skipped', 'reverting', 'reverted'))
);
--> statement-breakpoint
CREATE TABLE "rollouts" (
	"id" uuid PRIMARY KEY NOT NULL,
	"version" text NOT NULL,
	"state" text NOT NULL,
	"wave" integer DEFAULT 0 NOT NULL,
	"waves" integer NOT NULL,
	"wave_since" timestamp with time zone NOT NULL,
	"soak_seconds" integer NOT NULL,
	"timeout_seconds" integer NOT NULL,
	"max_failures" integer NOT NULL,
	"unwell" integer DEFAULT 0 NOT NULL,
	"wanted_by" text NOT NULL,
	"reason" text,
	"started_at" timestamp with time zone NOT NULL,
	"ended_at" timestamp with time zone,
	CONSTRAINT "rollouts_state" CHECK ("rollouts"."state" in ('running', 'paused', 'rolling_back', 'rolled_back', 'cancelled', 'done'))
);
--> statement-breakpoint
CREATE TABLE "operator_commands" (
	"id" uuid PRIMARY KEY NOT NULL,
	"operator" text NOT NULL,
	"node_id" text NOT NULL,
	"at" timestamp with time zone NOT NULL,
	"forget_at" timestamp with time zone NOT NULL
);
--> statement-breakpoint
CREATE TABLE "operator_keys" (
	"name" text PRIMARY KEY NOT NULL,
	"public_jwk" jsonb NOT NULL,
	"thumbprint" text NOT NULL,
	"created_by" text NOT NULL,
	"created_at" timestamp with time zone NOT NULL,
	"revoked_at" timestamp with time zone,
	CONSTRAINT "operator_keys_thumbprint_unique" UNIQUE("thumbprint")
);
--> statement-breakpoint
CREATE TABLE "address_pool" (
	"id" integer PRIMARY KEY NOT NULL,
	"next_index" integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE "idempotency_keys" (
	"scope" text NOT NULL,
	"key" text NOT NULL,
	"request_hash" text NOT NULL,
	"resource_id" uuid NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "idempotency_keys_scope_key_pk" PRIMARY KEY("scope","key")
);
--> statement-breakpoint
CREATE TABLE "peers" (
	"id" uuid PRIMARY KEY NOT NULL,
	"subscription_id" uuid NOT NULL,
	"public_key" text NOT NULL,
	"address_index" integer NOT NULL,
	"region_id" text NOT NULL,
	"device" text,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"provisioned_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "peers_public_key_unique" UNIQUE("public_key"),
	CONSTRAINT "peers_address_index_unique" UNIQUE("address_index")
);
--> statement-breakpoint
CREATE TABLE "resting_addresses" (
	"address_index" integer PRIMARY KEY NOT NULL,
	"released_at" timestamp with time zone NOT NULL
);
--> statement-breakpoint
CREATE TABLE "suspended_peers" (
	"id" uuid PRIMARY KEY NOT NULL,
	"subscription_id" uuid NOT NULL,
	"public_key" text NOT NULL,
	"address_index" integer NOT NULL,
	"region_id" text NOT NULL,
	"device" text,
	"created_at" timestamp with time zone NOT NULL,
	"suspended_at" timestamp with time zone NOT NULL
);
--> statement-breakpoint
CREATE TABLE "signing_keys" (
	"kid" text PRIMARY KEY NOT NULL,
	"use" text NOT NULL,
	"public_jwk" jsonb NOT NULL,
	"sealed_jwk" text NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"retired_at" timestamp with time zone,
	"expires_at" timestamp with time zone
);
--> statement-breakpoint
CREATE TABLE "devices" (
	"subscription_id" uuid NOT NULL,
	"jkt" text NOT NULL,
	"bound_at" timestamp with time zone NOT NULL,
	"revoked_at" timestamp with time zone,
	CONSTRAINT "devices_subscription_id_jkt_pk" PRIMARY KEY("subscription_id","jkt")
);
--> statement-breakpoint
CREATE TABLE "sigils" (
	"id" uuid PRIMARY KEY NOT NULL,
	"subscription_id" uuid NOT NULL,
	"token_hash" text NOT NULL,
	"kid" text NOT NULL,
	"tier" text NOT NULL,
	"issuer" text NOT NULL,
	"device" text,
	"bindings" text[],
	"issued_at" timestamp with time zone NOT NULL,
	"expires_at" timestamp with time zone NOT NULL,
	"revoked_at" timestamp with time zone,
	"idempotency_key" text,
	"request_hash" text,
	CONSTRAINT "sigils_token_hash_unique" UNIQUE("token_hash"),
	CONSTRAINT "sigils_idempotency_key_unique" UNIQUE("idempotency_key")
);
--> statement-breakpoint
CREATE TABLE "subscriptions" (
	"id" uuid PRIMARY KEY NOT NULL,
	"tier" text NOT NULL,
	"expires_at" timestamp with time zone NOT NULL,
	"revoked_at" timestamp with time zone,
	"lapsed_at" timestamp with time zone,
	"peer_count" integer DEFAULT 0 NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
ALTER TABLE "claims" ADD CONSTRAINT "claims_subscription_id_subscriptions_id_fk" FOREIGN KEY ("subscription_id") REFERENCES "public"."subscriptions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "entitlements" ADD CONSTRAINT "entitlements_subscription_id_subscriptions_id_fk" FOREIGN KEY ("subscription_id") REFERENCES "public"."subscriptions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "demand_samples" ADD CONSTRAINT "demand_samples_region_id_regions_id_fk" FOREIGN KEY ("region_id") REFERENCES "public"."regions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "machines" ADD CONSTRAINT "machines_region_id_regions_id_fk" FOREIGN KEY ("region_id") REFERENCES "public"."regions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "drains" ADD CONSTRAINT "drains_node_id_nodes_id_fk" FOREIGN KEY ("node_id") REFERENCES "public"."nodes"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "join_tokens" ADD CONSTRAINT "join_tokens_region_id_regions_id_fk" FOREIGN KEY ("region_id") REFERENCES "public"."regions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "node_health" ADD CONSTRAINT "node_health_node_id_nodes_id_fk" FOREIGN KEY ("node_id") REFERENCES "public"."nodes"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "node_reports" ADD CONSTRAINT "node_reports_node_id_nodes_id_fk" FOREIGN KEY ("node_id") REFERENCES "public"."nodes"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "nodes" ADD CONSTRAINT "nodes_region_id_regions_id_fk" FOREIGN KEY ("region_id") REFERENCES "public"."regions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "reboots" ADD CONSTRAINT "reboots_node_id_nodes_id_fk" FOREIGN KEY ("node_id") REFERENCES "public"."nodes"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "rollout_nodes" ADD CONSTRAINT "rollout_nodes_rollout_id_rollouts_id_fk" FOREIGN KEY ("rollout_id") REFERENCES "public"."rollouts"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "rollout_nodes" ADD CONSTRAINT "rollout_nodes_node_id_nodes_id_fk" FOREIGN KEY ("node_id") REFERENCES "public"."nodes"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "peers" ADD CONSTRAINT "peers_region_id_regions_id_fk" FOREIGN KEY ("region_id") REFERENCES "public"."regions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "suspended_peers" ADD CONSTRAINT "suspended_peers_subscription_id_subscriptions_id_fk" FOREIGN KEY ("subscription_id") REFERENCES "public"."subscriptions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "suspended_peers" ADD CONSTRAINT "suspended_peers_region_id_regions_id_fk" FOREIGN KEY ("region_id") REFERENCES "public"."regions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "devices" ADD CONSTRAINT "devices_subscription_id_subscriptions_id_fk" FOREIGN KEY ("subscription_id") REFERENCES "public"."subscriptions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "sigils" ADD CONSTRAINT "sigils_subscription_id_subscriptions_id_fk" FOREIGN KEY ("subscription_id") REFERENCES "public"."subscriptions"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "audit_log_subject" ON "audit_log" USING btree ("subject","id");--> statement-breakpoint
CREATE INDEX "audit_log_action" ON "audit_log" USING btree ("action","id");--> statement-breakpoint
CREATE INDEX "entitlements_subscription" ON "entitlements" USING btree ("subscription_id");--> statement-breakpoint
CREATE INDEX "entitlements_ending" ON "entitlements" USING btree ("expires_at") WHERE "entitlements"."live";--> statement-breakpoint
CREATE INDEX "entitlements_renewing" ON "entitlements" USING btree ("expires_at") WHERE "entitlements"."renews";--> statement-breakpoint
CREATE INDEX "store_messages_waiting" ON "store_messages" USING btree ("store","reference") WHERE "store_messages"."handled_at" is null;--> statement-breakpoint
CREATE INDEX "store_messages_handled" ON "store_messages" USING btree ("handled_at");--> statement-breakpoint
CREATE INDEX "store_reads_due" ON "store_reads" USING btree ("store","background","due_at");--> statement-breakpoint
CREATE UNIQUE INDEX "machines_node" ON "machines" USING btree ("node_id");--> statement-breakpoint
CREATE UNIQUE INDEX "machines_replaces" ON "machines" USING btree ("replaces") WHERE "machines"."ended_at" is null;--> statement-breakpoint
CREATE INDEX "machines_open" ON "machines" USING btree ("next_try_at") WHERE "machines"."ended_at" is null;--> statement-breakpoint
CREATE UNIQUE INDEX "drains_open" ON "drains" USING btree ("node_id") WHERE "drains"."state" in ('running', 'paused');--> statement-breakpoint
CREATE INDEX "drains_node" ON "drains" USING btree ("node_id","started_at");--> statement-breakpoint
CREATE INDEX "nodes_region" ON "nodes" USING btree ("region_id");--> statement-breakpoint
CREATE INDEX "placements_log" ON "placements" USING btree ("node_id","generation");--> statement-breakpoint
CREATE INDEX "placements_peer" ON "placements" USING btree ("peer_id");--> statement-breakpoint
CREATE INDEX "placements_release" ON "placements" USING btree ("release_at") WHERE "placements"."release_at" is not null;--> statement-breakpoint
CREATE UNIQUE INDEX "reboots_open" ON "reboots" USING btree ("node_id") WHERE "reboots"."ended_at" is null;--> statement-breakpoint
CREATE INDEX "reboots_node" ON "reboots" USING btree ("node_id","wanted_at");--> statement-breakpoint
CREATE UNIQUE INDEX "rollouts_open" ON "rollouts" USING btree ((true)) WHERE "rollouts"."ended_at" is null;--> statement-breakpoint
CREATE INDEX "operator_commands_order" ON "operator_commands" USING btree ("operator","node_id","at");--> statement-breakpoint
CREATE INDEX "idempotency_keys_created" ON "idempotency_keys" USING btree ("created_at");--> statement-breakpoint
CREATE INDEX "peers_subscription" ON "peers" USING btree ("subscription_id","id");--> statement-breakpoint
CREATE INDEX "resting_addresses_released" ON "resting_addresses" USING btree ("released_at");--> statement-breakpoint
CREATE INDEX "suspended_peers_subscription" ON "suspended_peers" USING btree ("subscription_id","id");--> statement-breakpoint
CREATE INDEX "signing_keys_use" ON "signing_keys" USING btree ("use");--> statement-breakpoint
CREATE INDEX "sigils_subscription" ON "sigils" USING btree ("subscription_id","device");--> statement-breakpoint
CREATE INDEX "sigils_expiry" ON "sigils" USING btree ("expires_at");--> statement-breakpoint
CREATE INDEX "subscriptions_lapsing" ON "subscriptions" USING btree ("expires_at") WHERE "subscriptions"."lapsed_at" is null and "subscriptions"."revoked_at" is null;