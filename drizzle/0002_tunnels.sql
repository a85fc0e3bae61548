ALTER TABLE "nodes" ADD COLUMN "tunnels" integer DEFAULT 1 NOT NULL;--> statement-breakpoint
ALTER TABLE "join_tokens" ADD COLUMN "tunnels" integer DEFAULT 1 NOT NULL;--> statement-breakpoint
ALTER TABLE "address_pool" RENAME COLUMN "next_index" TO "sequential_until";--> statement-breakpoint
ALTER TABLE "address_pool" ADD COLUMN "drawn" integer DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "address_pool" ALTER COLUMN "drawn" DROP DEFAULT;--> statement-breakpoint
ALTER TABLE "address_pool" ADD COLUMN "prefix4" integer;
