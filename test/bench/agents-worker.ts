/** A process with thousands of agents in it (work/agents.ts). */
import { serve } from './serve.ts';
import { agentOperations } from './work/agents.ts';

serve(agentOperations());
