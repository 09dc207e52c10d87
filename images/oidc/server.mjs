// The identity provider of the demo and the tests: npm oidc-provider, real OpenID Connect with discovery, JWKS,
// client credentials, authorization code with PKCE, refresh rotation, revocation and dynamic registration.
// Not for production: its clients and their secrets are in clients.json, its login asks for no password, its key
// and its state are gone with the process. Writes no file.
import { readFileSync } from 'node:fs';
import { generateKeyPairSync } from 'node:crypto';
import { Provider } from 'oidc-provider';

const issuer = process.env.OIDC_ISSUER ?? 'http://localhost:9000';
const audience = process.env.OIDC_AUDIENCE ?? 'agentapi';
const port = Number(process.env.OIDC_PORT ?? 9000);
// More clients, as OpenID Connect Dynamic Client Registration describes them: tests bring their own.
const more = process.env.OIDC_MORE_CLIENTS_FILE ? JSON.parse(readFileSync(process.env.OIDC_MORE_CLIENTS_FILE)) : [];
const people = JSON.parse(readFileSync(process.env.OIDC_CLIENTS_FILE ?? new URL('clients.json', import.meta.url)));

const key = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' });
const resource = 'urn:agentapi';

const provider = new Provider(issuer, {
  jwks: { keys: [{ ...key, use: 'sig', alg: 'RS256', kid: `demo-${Date.now()}` }] },
  // One client per person for scripts, and one for logins in a browser.
  clients: [
    ...Object.entries(people).map(([client_id, { secret }]) => ({
      client_id,
      client_secret: secret,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    })),
    {
      client_id: 'browser',
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      application_type: 'native',
      redirect_uris: ['http://127.0.0.1/callback'],
    },
    ...more,
  ],
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
    introspection: { enabled: true },
    registration: { enabled: true },
    revocation: { enabled: true },
    // Access tokens for the API are JWTs with its audience, whether the client asks for it or not.
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      // An MCP server has its own address as audience (RFC 8707).
      getResourceServerInfo: (_ctx, indicator) => ({
        scope: 'agentapi',
        audience: indicator === resource ? audience : indicator,
        accessTokenFormat: 'jwt',
        accessTokenTTL: 3600,
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
  scopes: ['openid', 'offline_access', 'email', 'agentapi'],
  claims: { openid: ['sub'], email: ['email'], agentapi: ['org_id', 'role'] },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: { AccessToken: 3600, ClientCredentials: 3600, IdToken: 3600, RefreshToken: 86400, Session: 86400, Grant: 86400, Interaction: 600, AuthorizationCode: 60 },
  // The claims that the API maps to an organization and a role: of the client, or of who has logged in.
  extraTokenClaims: (_ctx, token) => people[token.accountId ?? token.clientId]?.claims,
  findAccount: (_ctx, accountId) => {
    const person = people[accountId];
    return person && { accountId, claims: () => ({ sub: accountId, ...person.claims }) };
  },
  cookies: { keys: [crypto.randomUUID()] },
});

provider.on('server_error', (_ctx, error) => console.error(JSON.stringify({ level: 'error', error: error.message })));
provider.on('grant.error', (ctx, error) => console.warn(JSON.stringify({
  level: 'warn', client: ctx.oidc.client?.clientId, error: error.error, detail: error.error_detail ?? error.error_description,
})));

// What was done, without a token: the tests count it.
const did = (event, detail) => console.log(JSON.stringify({ level: 'info', event, ...detail }));
provider.on('grant.success', (ctx) => did('grant', { type: ctx.oidc.params.grant_type, client: ctx.oidc.client.clientId }));
provider.on('refresh_token.destroyed', () => did('refresh-token-destroyed', {}));
provider.on('registration_create.success', (_ctx, client) => did('registration', { client: client.clientId }));

const server = provider.listen(port, '0.0.0.0', () => console.log(JSON.stringify({ level: 'info', issuer, audience, port })));
for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, () => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  });
}
