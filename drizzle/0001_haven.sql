ALTER TABLE "regions" ADD COLUMN "haven" jsonb;--> statement-breakpoint
ALTER TABLE "regions" ADD COLUMN "ssh_from_mesh" boolean DEFAULT false NOT NULL;