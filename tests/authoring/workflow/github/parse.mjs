// node parse.mjs FILE... -> one line of JSON: for each file its errors, and the number of steps of each job
import { readFileSync } from "node:fs";
import parser from "./workflow-parser.cjs";

const { parseWorkflow, NoOperationTraceWriter, convertWorkflowTemplate } = parser;

const told = [];
for (const name of process.argv.slice(2)) {
  const parsed = parseWorkflow({ name, content: readFileSync(name, "utf8") }, new NoOperationTraceWriter());
  const workflow = parsed.value ? await convertWorkflowTemplate(parsed.context, parsed.value) : {};
  const jobs = Object.fromEntries((workflow.jobs ?? []).map((job) => [String(job.id), job.steps?.length ?? 0]));
  told.push({ errors: parsed.context.errors.getErrors().map(String), jobs });
}
console.log(JSON.stringify(told));
