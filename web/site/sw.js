// The page's files -> the same without a network. The model itself is kept by worker.js.

const VERSION = location.search.slice(1);
const CACHE = `gptpack ${VERSION}`;

self.addEventListener("install", (event) => {
  event.waitUntil(
    (async () => {
      const site = await fetch("site.json", { cache: "no-cache" });
      const { files } = await site.clone().json();
      const cache = await caches.open(CACHE);
      await cache.put(new URL("site.json", location), site);
      await cache.addAll(["./", ...files].map((file) => new Request(file, { cache: "no-cache" })));
      await self.skipWaiting();
    })(),
  );
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    (async () => {
      // older versions of this page alone: other pages of this host have caches too
      const scope = self.registration.scope;
      for (const name of await caches.keys()) {
        if (!name.startsWith("gptpack ") || name === CACHE) continue;
        const kept = await (await caches.open(name)).keys();
        if (kept.every(({ url }) => url.startsWith(scope))) await caches.delete(name);
      }
      await self.clients.claim();
    })(),
  );
});

self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(answer(event.request));
});

/** From the network while there is one, so that a page and its parts are of one version. */
async function answer(request) {
  try {
    return await fetch(request);
  } catch (error) {
    const cache = await caches.open(CACHE);
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}
