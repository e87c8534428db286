/* One resource: its lock in Redis, its fence in Postgres, and grants that acquire, seal, write and end.
 *
 * docs/explanation/models.md says which code each action stands for, and what is left out. A grant lives once: a process that
 * acquires again is another grant. Any grant may be paused for any time between two actions, so a lock expires
 * whenever its holder is not looking, and what was sent arrives late.
 *
 *   GRANTS n     how many grants                     LOSSES n   how often Redis loses data, or gets old data back
 *   FIRST_WRITE  seal_with_first_write=True          FAULTS n   how many answers are lost and closes fail
 *   CALM         only answers are lost: every body must run
 *   BREAK        an operator breaks the lock once    REPLAY     takes a trace of the simulator instead
 *
 * Mistakes that must be convicted: NO_FENCE, HIGHEST_WITHOUT_SEAL, CHECK_OUTSIDE, UNSEALED_WRITE, NUMBER_ONLY,
 * NO_CLOSE, NO_LINE, SETTLE_ANYBODY, RELEASE_ANYBODY, RENEW_ANYBODY, RENEW_REVIVES, NOT_REPEATABLE,
 * BREAK_LOCK_FIRST, BREAK_FENCE_ONLY_ONCE, BREAK_CLOSES_ONLY_THE_VICTIM, BREAK_KNOWS_STORED_TOKENS_ONLY,
 * BREAK_ABOVE_A_SUCCESSOR, FIRST_WRITE_BESIDE_OTHERS.
 */

#ifndef GRANTS
#define GRANTS 3
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef LOSSES
#define LOSSES 1
#endif
#define SIZE (GRANTS + 1)
/* What the fence's row may name beside a grant. */
#define OPERATOR (GRANTS + 1)
#define UNKNOWN (GRANTS + 2)
#ifdef REPLAY
#define token int
#define count int
#else
#define token byte
#define count byte
#endif

/* How far a client is. */
#define IDLE 0
#define ASKING 1
#define HAVE 2 /* it has the lock, and seals */
#define IN 3   /* acquire has returned: its body runs */
#define LEFT 4

/* How far a seal or a close is. */
#define NONE 0
#define SENT 1
#define IN_LINE 2
#define OVER 3 /* the seal was accepted, the close is done */
#define OUTRUN 4

/* Redis. */
count lock; token ltok; /* the grant that holds the lock, and its token; 0: it is free */
token floor;            /* the last token issued */
count old_lock; token old_ltok, old_floor; /* what a restart with old data comes back with */

/* Postgres: the fence's row; the transactions that were checked, which share the gate. */
token ft; count fg; bit fopen;
bit tx[SIZE]; count txs;
count line;   /* how many stand in line for the gate */

/* The client of each grant. */
byte ph[SIZE];
token tok[SIZE];  /* its lease's token */
token rep[SIZE];  /* the answer of Redis that is on its way */
bit stray[SIZE];  /* it has left, and a statement or a task of its body may have stayed behind */
bit rel[SIZE];    /* its release is on its way */
byte sq[SIZE]; token sent[SIZE]; /* its seal, and the token that this presents; once outrun, the one in force */
byte cq[SIZE];    /* its close */
byte outruns[SIZE];
bit first[SIZE];   /* its first write, which carries its seal, is on its way */
byte faults, losses;

/* The operator: 1 asks the fence, 2 the fence is broken, 3 the lock is too, 4 what it showed is closed, 5 told. */
byte bk; count victim; token bt, bfloor;
#ifdef BREAK
token issued; /* Redis's time: no token that Redis made of it is higher. No loss sets it back */
#endif

/* What the laws are about. No action depends on it. */
bit alive[SIZE]; count alives; /* whose lock was neither released, nor expired, nor taken */
bit shut[SIZE];   /* no write may begin any more: its hold was left, or it was broken */
bit before[SIZE]; /* it was granted when the break began */
bit had[SIZE], freed; /* it was granted when the break took the lock; whether it has */
bit was_in[SIZE];
token top; count top_grant;     /* the highest token with which a hold was entered: nothing older may commit */
token sealed;                   /* the highest token that was sealed */
bit lost;         /* Redis has lost data */

/* -- Redis ------------------------------------------------------------------------------------------------- */

inline dies(g) { /* g's lock is gone, whatever made it go */
  if
  :: alive[g] -> alive[g] = 0; alives--
  :: else
  fi
}

inline ask(g) { d_step {
  ph[g] == IDLE && (g == 1 || ph[g - 1] != IDLE) -> ph[g] = ASKING
} }

/* acquire.lua: granted, or the same answer again for the same grant. */
inline acquire(g, t) { d_step {
#ifdef NOT_REPEATABLE
  ph[g] == ASKING && rep[g] == 0 && lock == 0 && t > floor ->
#else
  ph[g] == ASKING && rep[g] == 0 && ((lock == 0 && t > floor) || (lock == g && t == ltok)) ->
#endif
  if
  :: lock == 0 ->
    assert(lost || alives == 0); /* S1: nobody else holds the lock */
    ltok = t; lock = g; floor = ltok; /* t may be made of what changes here */
#ifdef BREAK
    issued = (issued > ltok -> issued : ltok);
#endif
    alive[g] = 1; alives++; before[g] = 0; had[g] = 0; shut[g] = 0
  :: else
  fi;
  rep[g] = ltok
} }

inline answered(g) { d_step {
  ph[g] == ASKING && rep[g] != 0 -> tok[g] = rep[g]; rep[g] = 0; ph[g] = HAVE
} }

inline answer_lost(g) { d_step {
  ph[g] == ASKING && rep[g] != 0 && faults < FAULTS -> rep[g] = 0; faults++
} }

/* extend.lua. It changes nothing here: a ttl may end at any time. */
inline renew(g) { d_step {
#ifdef RENEW_ANYBODY
  (ph[g] == HAVE || ph[g] == IN) && lock != 0 ->
#elif defined(RENEW_REVIVES)
  (ph[g] == HAVE || ph[g] == IN) && (lock == g || lock == 0) ->
  lock = g;
#else
  (ph[g] == HAVE || ph[g] == IN) && lock == g ->
#endif
  assert(alive[g] || lost) /* S6: who is told that it has renewed holds the lock */
} }

inline expire() { d_step {
  lock != 0 -> dies(lock); lock = 0
} }

/* settle.lua, with what _hold.py makes of an outrun seal. */
inline settle(g, t) { d_step {
#ifdef SETTLE_ANYBODY
  ph[g] == HAVE && sq[g] == OUTRUN && t > sent[g] ->
#else
  ph[g] == HAVE && sq[g] == OUTRUN && lock == g && t > sent[g] ->
#endif
  if
  :: lock == g -> ltok = t
  :: else
  fi;
  floor = (floor > t -> floor : t);
  tok[g] = t; sq[g] = NONE
} }

inline release(g) { d_step {
#ifdef RELEASE_ANYBODY
  rel[g] -> rel[g] = 0; dies(g); lock = 0
#else
  rel[g] ->
  rel[g] = 0;
  if
  :: lock == g -> dies(g); lock = 0
  :: else
  fi
#endif
} }

inline wipe() { d_step {
  losses < LOSSES -> losses++; lost = 1;
  if
  :: lock != 0 -> dies(lock)
  :: else
  fi;
  lock = 0; ltok = 0; floor = 0
} }

inline keep_a_copy() { d_step {
  losses < LOSSES && old_floor == 0 && floor != 0 -> old_lock = lock; old_ltok = ltok; old_floor = floor
} }

/* Not once a break has freed the lock: the lock that was broken would come back as well. */
inline restart_with_old_data() { d_step {
  losses < LOSSES && old_floor != 0 && bk < 3 -> losses++; lost = 1;
  if
  :: lock != 0 -> dies(lock)
  :: else
  fi;
  lock = old_lock; ltok = old_ltok; floor = old_floor; old_lock = 0; old_ltok = 0; old_floor = 0
} }

/* -- The fence --------------------------------------------------------------------------------------------- */

/* What a seal does once it has the gate. */
inline seal_row(g) {
  if
  :: ft < sent[g] && fg != g ->
    ft = sent[g]; fg = g; fopen = 1; sq[g] = OVER;
    assert(ft > sealed); /* S2: tokens grow in the order of the seals */
    sealed = ft
  :: else ->
#ifdef NUMBER_ONLY
    sq[g] = (ft == sent[g] && fopen -> OVER : OUTRUN); sent[g] = ft
#else
    sq[g] = (fg == g && fopen -> OVER : OUTRUN); sent[g] = ft
#endif
  fi
}

inline send_seal(g) { d_step {
  ph[g] == HAVE && sq[g] == NONE && outruns[g] < 3 -> sq[g] = SENT; sent[g] = tok[g]
} }

inline stand_in_line_to_seal(g) { d_step {
  sq[g] == SENT && txs != 0 && !(fg != g && ft >= sent[g]) -> sq[g] = IN_LINE; line++
} }

/* lockguard.seal(): behind the open transactions; who is outrun already waits for nobody. */
inline seal(g) { d_step {
#ifdef CHECK_OUTSIDE
  (sq[g] == SENT || sq[g] == IN_LINE) ->
#else
  (sq[g] == SENT || sq[g] == IN_LINE) && (txs == 0 || (sq[g] == SENT && fg != g && ft >= sent[g])) ->
#endif
  line = line - (sq[g] == IN_LINE -> 1 : 0);
  if
  :: txs != 0 && fg != g && ft >= sent[g] -> sq[g] = OUTRUN; sent[g] = ft
  :: else -> seal_row(g)
  fi;
  outruns[g] = outruns[g] + (sq[g] == OUTRUN -> 1 : 0)
} }

/* The session of who stays in a transaction before a seal or a break is ended; it may also end by itself. */
inline abort(g) { d_step {
  tx[g] -> tx[g] = 0; txs--
} }

/* From here on nothing older than g may commit (S3). */
inline final(g) {
  if
  :: tok[g] > top -> top = tok[g]; top_grant = g
  :: else -> assert(tok[g] < top || top_grant == g) /* S2: no two have the same token */
  fi
}

/* Acquire returns. */
inline enter(g) { d_step {
#ifdef FIRST_WRITE
  ph[g] == HAVE ->
#elif defined(UNSEALED_WRITE)
  ph[g] == HAVE && (sq[g] == OVER || sq[g] == SENT) ->
  final(g);
#elif defined(NO_FENCE) || defined(HIGHEST_WITHOUT_SEAL)
  ph[g] == HAVE ->
  final(g);
#else
  ph[g] == HAVE && sq[g] == OVER ->
  tok[g] = sent[g];
  final(g);
#endif
  ph[g] = IN; was_in[g] = 1
} }

/* Whether the row lets a transaction of g in. */
#ifdef NO_FENCE
#define IN_FORCE(g) true
#elif defined(HIGHEST_WITHOUT_SEAL)
#define IN_FORCE(g) (tok[g] >= ft)
#elif defined(UNSEALED_WRITE)
#define IN_FORCE(g) ((ft == tok[g] && fg == g && fopen) || tok[g] > ft)
#elif defined(NUMBER_ONLY)
#define IN_FORCE(g) (ft == tok[g] && fopen)
#else
#define IN_FORCE(g) (ft == tok[g] && fg == g && fopen)
#endif

#ifdef NO_LINE
#define AT_THE_GATE true
#else
#define AT_THE_GATE (line == 0)
#endif

/* lockguard.check() accepts: by the body, or late, by a task or a statement that outlives it. */
inline present(g) { d_step {
#ifdef FIRST_WRITE
  ((ph[g] == IN && sq[g] == OVER) || stray[g]) && !tx[g] && AT_THE_GATE && IN_FORCE(g) ->
  final(g);
#else
  (ph[g] == IN || stray[g]) && !tx[g] && AT_THE_GATE && IN_FORCE(g) ->
#endif
  assert(!shut[g]);  /* S5: nothing is accepted once a hold was left or broken */
  assert(line == 0); /* S5: nothing new is let in once somebody asks */
#ifdef HIGHEST_WITHOUT_SEAL
  ft = tok[g];
#endif
  tx[g] = 1; txs++
} }

/* lockguard.check() refuses, and the lease ends with that (S10). */
inline refused(g) { d_step {
  ph[g] == IN && !tx[g] && AT_THE_GATE && sq[g] == OVER && !IN_FORCE(g) ->
  assert(lost || !alive[g] || had[g] || (bk == 2 && !freed)); /* S3: who holds the lock may write */
  goes(g)
} }

inline commit(g) { d_step {
  tx[g] ->
  assert(top <= tok[g] && (top < tok[g] || top_grant == g)); /* S1, S3: no stale commit */
  tx[g] = 0; txs--
} }

/* check_first(): seal, check, write and commit, with the gate to itself; otherwise the grant is sealed by itself. */
inline send_first_write(g) { d_step {
  ph[g] == IN && sq[g] == NONE && !first[g] -> first[g] = 1
} }

inline first_write(g) { d_step {
  first[g] -> first[g] = 0;
  if
#ifdef FIRST_WRITE_BESIDE_OTHERS
  :: ft < tok[g] && fg != g ->
#else
  :: txs == 0 && line == 0 && ft < tok[g] && fg != g ->
#endif
    ft = tok[g]; fg = g; fopen = 1;
    assert(ft > sealed); /* S2: tokens grow in the order of the seals */
    assert(top <= tok[g] && (top < tok[g] || top_grant == g)); /* S1, S3: no stale commit */
    sealed = ft;
    if
    :: ph[g] == IN -> sq[g] = OVER; sent[g] = ft; final(g)
    :: else
    fi
  :: else ->
    if
    :: ph[g] == IN -> sq[g] = SENT; sent[g] = tok[g]
    :: else
    fi
  fi
} }

/* The body is over, or acquire is given up: the release is sent, and the close of what may have been sealed. */
inline goes(g) {
#ifdef FIRST_WRITE
  stray[g] = (sq[g] == OVER);
#else
  stray[g] = was_in[g];
#endif
  ph[g] = LEFT; rel[g] = 1;
#ifdef NO_CLOSE
  cq[g] = OVER; shut[g] = 1
#elif defined(NO_FENCE) || defined(HIGHEST_WITHOUT_SEAL)
  cq[g] = OVER
#else
  cq[g] = (tok[g] != 0 -> SENT : OVER)
#endif
}

inline leave(g) { d_step {
#ifdef CALM
  ph[g] == IN && !tx[g] -> goes(g)
#else
  ph[g] == ASKING || ph[g] == HAVE || ph[g] == IN -> goes(g)
#endif
} }

/* Whether a close of t by g changes nothing and waits for nobody: who is in may be the successor's. */
#define NOTHING_TO_CLOSE(g, t) (fg != g && (ft >= t || fopen))

inline close_row(g, t) {
  if
  :: fg == g && fopen -> fopen = 0; ft = (ft > t -> ft : t)
  :: fg != g && ft < t && !fopen -> ft = t; fg = g
  :: else
  fi
}

inline stand_in_line_to_close(g) { d_step {
  cq[g] == SENT && txs != 0 && !NOTHING_TO_CLOSE(g, tok[g]) -> cq[g] = IN_LINE; line++
} }

inline close(g) { d_step {
  (cq[g] == SENT || cq[g] == IN_LINE) && (txs == 0 || (cq[g] == SENT && NOTHING_TO_CLOSE(g, tok[g]))) ->
  line = line - (cq[g] == IN_LINE -> 1 : 0);
  close_row(g, tok[g]);
  cq[g] = OVER; shut[g] = 1
} }

/* Postgres is out of reach: the next seal shuts g out. */
inline close_fails(g) { d_step {
  cq[g] == SENT && faults < FAULTS -> cq[g] = OVER; faults++
} }

/* -- The operator ------------------------------------------------------------------------------------------ */

inline begin_break() { d_step {
  bk == 0 && floor != 0 -> bk = 1; line++;
  for (h : 1 .. GRANTS) { before[h] = (rep[h] != 0 || tok[h] != 0) }
} }

/* lockguard.break_() raises the fence above what it knows; with Redis's clock in step, above all that was granted. */
inline break_fence(t) { d_step {
  bk == 1 && txs == 0 && t > ft ->
  bt = t; line--; ft = bt; fg = OPERATOR; fopen = 0; bk = 2
} }

inline free_lock() {
  freed = 1;
  for (h : 1 .. GRANTS) { had[h] = (rep[h] != 0 || tok[h] != 0) }
  if
  :: lock != 0 -> dies(lock); lock = 0
  :: else
  fi
}

/* break.lua with "force": nobody has bfloor for a token, and who comes has a higher one. */
inline break_lock() { d_step {
  bk == 2 ->
  victim = (lock != 0 -> lock : UNKNOWN);
#ifdef BREAK_KNOWS_STORED_TOKENS_ONLY
  floor = (floor > bt -> floor : bt); /* and what is no higher than bt is not broken late */
#else
  floor = (floor > bt -> floor + 1 : bt + 2);
#ifdef BREAK
  floor = (floor > issued -> floor : issued + 1);
#endif
#endif
  bfloor = floor;
#ifndef BREAK_LOCK_FIRST
  free_lock();
#endif
  bk = 3
} }

/* _breaking.py: what Redis gave out beyond the fence's token is closed, be it sealed or not; a newer grant is left alone. */
inline break_close() { d_step {
#ifdef BREAK_FENCE_ONLY_ONCE
  bk == 3 -> bk = 4
#else
  bk == 3 && (txs == 0 || NOTHING_TO_CLOSE(victim, bfloor)) -> close_row(victim, bfloor); bk = 4
#endif
} }

#ifdef BREAK_ABOVE_A_SUCCESSOR
#define UP_TO (bfloor + 1) /* as where one node's clock is ahead of those that the successor got the lock from */
#else
#define UP_TO (bfloor - 1)
#endif

/* Who has sealed, and is not the victim, is thrown out too if its token is lower than bfloor. */
inline break_late() { d_step {
#if defined(BREAK_FENCE_ONLY_ONCE) || defined(BREAK_CLOSES_ONLY_THE_VICTIM)
  bk == 4 ->
#else
  bk == 4 && (txs == 0 || ft > UP_TO) ->
  if
  :: ft <= UP_TO ->
    ft = UP_TO + 2; fg = OPERATOR; fopen = 0;
    if
    :: lock == 0 && floor < ft -> floor = ft
    :: else
    fi
  :: else
  fi;
#endif
  bk = 5;
  for (h : 1 .. GRANTS) { shut[h] = shut[h] || before[h] }
} }

/* ---------------------------------------------------------------------------------------------------------- */

#ifdef REPLAY
#include "replay_lock_and_fence.h"
#else

proctype grant(byte g) {
  do
  :: ask(g)
  :: acquire(g, floor + 1)
  :: acquire(g, ltok)
  :: answered(g)
#ifdef FIRST_WRITE
  :: send_first_write(g)
  :: first_write(g)
#else
  :: send_seal(g)
  :: settle(g, sent[g] + 1)
#endif
  :: stand_in_line_to_seal(g)
  :: seal(g)
  :: enter(g)
  :: renew(g)
  :: present(g)
  :: refused(g)
  :: commit(g)
  :: abort(g)
  :: leave(g)
  :: release(g)
  :: stand_in_line_to_close(g)
  :: close(g)
  :: answer_lost(g)
#ifndef CALM
  :: close_fails(g)
  :: ph[g] == IDLE -> break
#endif
  :: atomic { ph[g] == LEFT && !rel[g] && cq[g] == OVER && !tx[g] && sq[g] != SENT && sq[g] != IN_LINE && !first[g] ->
#ifdef CALM
    assert(was_in[g]); /* progress: every acquire succeeds */
#endif
    break
  }
  od
}

#ifndef CALM
active proctype servers() {
end:
  do
  :: expire()
  :: wipe()
  :: keep_a_copy()
  :: restart_with_old_data()
  od
}
#endif

#ifdef BREAK
active proctype operator() {
  byte h;
#ifdef BREAK_LOCK_FIRST
  end_waiting:
  d_step { lock != 0 -> free_lock() };
#endif
end:
  begin_break();
  if
  :: break_fence(ft + 1)
  :: break_fence(floor + 1)
  fi;
  break_lock();
  break_close();
  break_late()
}
#endif

init {
  byte g;
  atomic { for (g : 1 .. GRANTS) { run grant(g) } }
}
#endif
