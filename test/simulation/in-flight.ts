/**
 * What is on its way to the database and back, so that virtual time stands still meanwhile: a pass of a job takes none
 * of it, however long the machine needs. Everything else passes through untouched.
 */
import type { Database, Sql, Tx } from '@katafract/controller/platform/db';

type Then = Promise<unknown>['then'];

export class InFlight {
  #count = 0;
  #done: () => void = () => undefined;
  #statements = 0;

  get statements(): number {
    return this.#statements;
  }

  /** The same database, counted. */
  around(db: Database): Database {
    const track = <T>(work: Promise<T>): Promise<T> => this.#track(work);
    const counted = (sql: Sql) => this.#counted(sql);
    return {
      get orm() {
        return db.orm;
      },
      get sql() {
        return counted(db.sql);
      },
      transaction: <T>(fn: (tx: Tx) => Promise<T>) => track(db.transaction(fn)),
      listen: (channel, fn, onReady) => db.listen(channel, fn, onReady),
      session: () => counted(db.session()),
      ping: () => track(db.ping()),
      close: () => db.close(),
    };
  }

  async #track<T>(work: Promise<T>): Promise<T> {
    this.#count++;
    this.#statements++;
    try {
      return await work;
    } finally {
      this.#end();
    }
  }

  #end(): void {
    this.#count--;
    if (this.#count === 0) this.#done();
  }

  /** A statement begins when somebody waits for it; a fragment of another one never does. */
  #counted(sql: Sql): Sql {
    return new Proxy(sql, {
      apply: (target, self, args) => {
        const query = Reflect.apply(target as never, self, args) as PromiseLike<unknown> & { then: Then };
        if (typeof query?.then !== 'function') return query;
        const then = query.then.bind(query) as Then;
        let begun = false;
        Object.defineProperty(query, 'then', {
          value: (...waiting: Parameters<Then>) => {
            if (begun) return then(...waiting);
            begun = true;
            this.#count++;
            this.#statements++;
            const done = () => this.#end();
            then(done, done);
            return then(...waiting);
          },
        });
        return query;
      },
    });
  }

  /** Resolves when nothing is on its way, and what came back has set nothing else off. */
  async idle(): Promise<void> {
    for (let quiet = 0; quiet < 3; ) {
      await new Promise((resolve) => setImmediate(resolve));
      quiet = this.#count === 0 ? quiet + 1 : 0;
      if (this.#count > 0) await this.#finished();
    }
  }

  #finished(): Promise<void> {
    return new Promise((resolve) => {
      this.#done = resolve;
    });
  }
}
