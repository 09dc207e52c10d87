// Prints an access token: node token.mjs CLIENT. Runs beside the server (`kubectl exec deploy/oidc -- …`).
import { readFileSync } from 'node:fs';

const client = process.argv[2];
const people = JSON.parse(readFileSync(process.env.OIDC_CLIENTS_FILE ?? new URL('clients.json', import.meta.url)));
if (!Object.hasOwn(people, client)) {
  console.error(`no client ${client}; there are ${Object.keys(people).join(', ')}`);
  process.exit(2);
}
const response = await fetch(`http://127.0.0.1:${process.env.OIDC_PORT ?? 9000}/token`, {
  method: 'POST',
  headers: { authorization: `Basic ${btoa(`${client}:${people[client].secret}`)}` },
  body: new URLSearchParams({ grant_type: 'client_credentials' }),
});
const answer = await response.json();
if (!response.ok) {
  console.error(JSON.stringify(answer));
  process.exit(1);
}
console.log(answer.access_token);
