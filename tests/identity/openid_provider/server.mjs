// A certified OpenID provider (oidc-provider) for the tests: in memory, on a free port of loopback, which it prints.
// Its own pages ask for any login, then for consent. Beside the standard's endpoints there are, for the tests only,
//   POST /test/revoke   withdraws everything any user granted
//   GET  /test/asked    how often each grant was given or refused: {"refresh_token": 2, "invalid_grant": 1}
import { createServer } from 'node:http';
import { Provider, errors } from 'oidc-provider';

const RESOURCE = 'https://tickets.example';
const asked = {};
const granted = new Set();
const count = (name) => { asked[name] = (asked[name] ?? 0) + 1; };

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [{
      // Characters that HTTP Basic and forms treat each in their own way (RFC 6749, 2.3.1).
      client_id: 'odd:client+id',
      client_secret: 's3cret%2F+:&= /end',
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    }],
    scopes: ['openid', 'offline_access', 'tickets:read', 'tickets:write'],
    cookies: { keys: ['for tests'] },
    pkce: { required: () => true },
    rotateRefreshToken: () => true,
    issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
    clientDefaults: { scope: 'openid offline_access tickets:read tickets:write' },
    ttl: { AccessToken: 600, ClientCredentials: 600, Grant: 86400, Session: 86400, Interaction: 600, RefreshToken: 86400 },
    features: {
      clientCredentials: { enabled: true },
      introspection: { enabled: true },
      registration: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, resource) => {
          if (resource !== RESOURCE) throw new errors.InvalidTarget();
          return { scope: 'tickets:read tickets:write', audience: RESOURCE };
        },
      },
    },
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  });
  provider.on('grant.success', (ctx) => {
    count(ctx.oidc.params.grant_type);
    if (ctx.oidc.entities.Grant) granted.add(ctx.oidc.entities.Grant.jti);
  });
  provider.on('grant.error', (ctx, error) => count(error.error));
  provider.on('server_error', (ctx, error) => console.error(error));

  const oidc = provider.callback();
  server.on('request', async (request, response) => {
    if (request.url === '/test/asked') {
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify(asked));
    } else if (request.url === '/test/revoke') {
      for (const id of granted) {
        await provider.RefreshToken.revokeByGrantId?.(id);
        await (await provider.Grant.find(id))?.destroy();
      }
      granted.clear();
      response.end();
    } else {
      oidc(request, response);
    }
  });
  console.log(issuer);
});
