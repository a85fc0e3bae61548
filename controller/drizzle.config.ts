/** `drizzle-kit generate` writes the migrations in /drizzle from every domain's tables. */
import { defineConfig } from 'drizzle-kit';

export default defineConfig({
  dialect: 'postgresql',
  schema: './src/**/tables.ts',
  out: '../drizzle',
});
