// node evaluate.mjs EXPRESSION CONTEXTS(JSON) -> the value as text, by GitHub's own evaluator of expressions
import parser from "./workflow-parser.cjs";

const { Lexer, Parser, Evaluator, data } = parser;
const [expression, contexts] = process.argv.slice(2);
const names = Object.keys(JSON.parse(contexts));
const parsed = new Parser(new Lexer(expression).lex().tokens, names, []).parse();
console.log(new Evaluator(parsed, JSON.parse(contexts, data.reviver)).evaluate().coerceString());
