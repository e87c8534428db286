/* The waiting queue of one resource on one server: places, wake-ups, reservations, dead waiters.
 *
 * docs/explanation/models.md says which code each action stands for, and what is left out. A waiter lives once; waiters of one
 * process share its inbox. Time goes by in ticks of half a second; between two ticks whatever is due is done, in
 * any order.
 *
 *   WAITERS n    how many                            LOST n   how many wake-ups are lost
 *   OF_ONE n     how many of them are the first      DEAD n   how many processes die
 *                process's; the others have one each          REPLAY   takes a trace of the simulator instead
 *
 * Mistakes that must be convicted: WAKE_NOT_PASSED_ON, NO_WAKE, DEAD_NOT_SKIPPED, NO_POLL, QUEUE_NOT_ASKED,
 * RESERVATION_NOT_HEEDED, GIVING_UP_IS_SILENCE, PLACE_NOT_REMOVED, RELEASE_OVERTAKES, SIGN_OF_LIFE_NOT_KEPT.
 */

#ifndef WAITERS
#define WAITERS 3
#endif
#ifndef OF_ONE
#define OF_ONE 2
#endif
#ifndef LOST
#define LOST 0
#endif
#ifndef DEAD
#define DEAD 0
#endif
#define SIZE (WAITERS + 1)
#define PROCESS(g) ((g) <= OF_ONE -> 1 : (g) - OF_ONE + 1)
#define PROCESSES (WAITERS - OF_ONE + 1)

/* In ticks. */
#define RESERVED 1 /* wake.lua */
#define SILENT 5   /* wake.lua */
#define POLL 2     /* _single_node.py */
#define TTL 3
#define UNHEARD (SILENT + 1)

/* What a waiter does. */
#define OUT 0
#define WAITS 1
#define HOLDS 2
#define GONE 3 /* it gave up, or left its body */
#define DIED 4

/* The server. */
byte lock, left;     /* who has it, and for how long yet */
byte ticket[SIZE];   /* its place in the queue; 0: none */
byte tickets;
byte next, kept;     /* the waiter that the free lock is reserved for, and for how long yet */
byte unheard[SIZE];  /* of each process: ticks since its last sign of life */
byte queued;

/* The waiters. */
byte st[SIZE];
byte mine[SIZE];     /* the ticket that it was told */
byte timer[SIZE];    /* ticks until it asks by itself */
bit woke[SIZE];      /* it is to ask now */
bit asks[SIZE];      /* its request is on its way */
bit gives[SIZE];     /* its release is on its way, behind its request */
bit msg[SIZE];       /* a wake-up for it is on its way */
byte losses, deaths;

/* What the laws are about. */
bit deaf[SIZE];      /* a process that has missed a wake-up, and was not heard of since */
bit missed[SIZE];    /* a waiter that lost its place with a lost wake-up, and did not get it back yet */
byte unheld;         /* ticks in which it was not held, and somebody waited */
bit is_clean, is_passed_on, is_bounded;
byte i, head, who;

inline heard(g) { unheard[PROCESS(g)] = 0; deaf[PROCESS(g)] = 0 }

/* The first in the queue. */
inline find_head() {
  head = 0;
  for (i : 1 .. WAITERS) {
    if
    :: ticket[i] != 0 && (head == 0 || ticket[i] < ticket[head]) -> head = i
    :: else
    fi
  }
  i = 0
}

inline take_out(g) {
  if
  :: ticket[g] != 0 -> ticket[g] = 0; queued--
  :: else
  fi
}

inline no_queue() { /* with the queue the signs of life go */
  for (i : 1 .. PROCESSES) { unheard[i] = UNHEARD }
  i = 0
}

#ifdef DEAD_NOT_SKIPPED
#define IS_ALIVE(g) true
#else
#define IS_ALIVE(g) (unheard[PROCESS(g)] <= SILENT)
#endif

/* wake.lua: reserve the lock for a waiter, and tell it. */
inline wake(g) {
#ifndef DEAD_NOT_SKIPPED
  unheard[PROCESS(g)] = UNHEARD; /* one chance for each process */
#endif
  next = g; kept = RESERVED; msg[g] = 1
}

/* wake.lua: wake_first() */
inline wake_first() {
  find_head();
  do
  :: head == 0 -> no_queue(); break
  :: head != 0 ->
    who = head;
#ifdef DEAD_NOT_SKIPPED
    wake(who); break
#endif
    take_out(who);
    if
    :: IS_ALIVE(who) -> wake(who); break
    :: else -> missed[who] = deaf[PROCESS(who)]; find_head()
    fi
  od;
  head = 0; who = 0
}

inline have(g) {
  /* Nobody who came before is passed over, while it lives and is not deaf. */
  for (i : 1 .. WAITERS) {
    if
    :: i != g && st[i] == WAITS && !gives[i] && mine[i] != 0 && (mine[g] == 0 || mine[i] < mine[g]) && !missed[i] && st[g] == WAITS ->
      assert(i == 0) /* L2: first come, first served */
    :: else
    fi
  }
  i = 0;
  lock = g; left = TTL; next = 0; kept = 0;
  take_out(g);
#ifndef SIGN_OF_LIFE_NOT_KEPT
  if
  :: queued != 0 || unheard[PROCESS(g)] <= SILENT -> heard(g)
  :: else -> deaf[PROCESS(g)] = 0
  fi;
#endif
  woke[g] = 0;
  if
  :: st[g] == WAITS -> st[g] = HOLDS; become_first(g)
  :: else
  fi
}

/* acquire.lua: the answer is a place. */
inline busy(g) {
  heard(g);
  if
  :: ticket[g] == 0 && mine[g] != 0 -> /* its place had vanished: so have those of its process */
    ticket[g] = mine[g]; queued++;
    if
    :: g <= OF_ONE -> for (i : 1 .. OF_ONE) { woke[i] = (i != g && st[i] == WAITS -> 1 : woke[i]) }
    :: else
    fi;
    i = 0
  :: ticket[g] == 0 && mine[g] == 0 -> tickets++; ticket[g] = tickets; queued++
  :: else
  fi;
  mine[g] = ticket[g];
  timer[g] = (next != 0 -> RESERVED : POLL)
}

/* The first waiter of a process polls. */
#define first_of_its_process(g) (g > OF_ONE || g == 1 || (st[1] != WAITS && (g == 2 || st[2] != WAITS)))
#ifdef NO_POLL
#define due(g) false
#else
#define due(g) (first_of_its_process(g) && timer[g] == 0)
#endif

inline send_ask(g) { d_step {
  ((st[g] == OUT && (g == 1 || g > OF_ONE || st[g - 1] != OUT)) || (st[g] == WAITS && (woke[g] || due(g)))) && !asks[g] ->
  st[g] = WAITS; woke[g] = 0; asks[g] = 1
} }

/* Who is first by now works out anew how long to rest. */
inline become_first(g) {
  if
  :: g <= OF_ONE ->
    for (i : 1 .. OF_ONE) { timer[i] = (st[i] == WAITS && timer[i] > POLL -> POLL : timer[i]) }
    i = 0
  :: else
  fi
}

/* acquire.lua */
inline ask(g) { d_step {
  asks[g] -> asks[g] = 0;
  missed[g] = missed[g] && next != 0 && next != g; /* what was reserved meanwhile stays so */
  if
  :: lock == g -> skip
  :: lock != g && lock != 0 -> busy(g)
  :: lock == 0 && next == g -> have(g)
#ifdef RESERVATION_NOT_HEEDED
  :: lock == 0 && next != g && next != 0 -> have(g)
#else
  :: lock == 0 && next != g && next != 0 -> busy(g)
#endif
  :: lock == 0 && next == 0 ->
    find_head();
    do
#ifdef QUEUE_NOT_ASKED
    :: true -> have(g); break
#else
    :: head == 0 || head == g -> have(g); break
    :: head != 0 && head != g && mine[g] != 0 && mine[g] < ticket[head] -> have(g); break
    :: else ->
      who = head;
#ifndef DEAD_NOT_SKIPPED
      take_out(who);
#endif
      if
      :: IS_ALIVE(who) -> wake(who); busy(g); break
      :: else -> missed[who] = deaf[PROCESS(who)]; find_head()
      fi
#endif
    od;
    head = 0; who = 0
  fi
} }

inline deliver(g) { d_step {
  msg[g] -> msg[g] = 0;
  if
  :: st[g] == WAITS -> woke[g] = 1
  :: else
  fi
} }

inline lose(g) { d_step {
  msg[g] && st[g] != DIED && losses < LOST -> msg[g] = 0; losses++; missed[g] = 1; deaf[PROCESS(g)] = 1
} }

inline give_up(g) { d_step {
  st[g] == WAITS && !gives[g] -> st[g] = GONE; gives[g] = 1; woke[g] = 0; become_first(g)
} }

inline leave(g) { d_step {
  st[g] == HOLDS -> st[g] = GONE; gives[g] = 1
} }

/* release.lua */
inline release(g) { d_step {
#ifdef RELEASE_OVERTAKES
  gives[g] ->
#else
  gives[g] && !asks[g] ->
#endif
  gives[g] = 0;
  if
  :: lock == g ->
    lock = 0; left = 0;
#ifndef NO_WAKE
    wake_first()
#endif
  :: lock != g ->
#ifndef PLACE_NOT_REMOVED
    take_out(g);
#endif
    if
    :: next == g ->
      next = 0; kept = 0;
#ifndef GIVING_UP_IS_SILENCE
      if
      :: queued != 0 -> heard(g)
      :: else
      fi;
#endif
#ifndef WAKE_NOT_PASSED_ON
      if
      :: lock == 0 -> wake_first()
      :: else
      fi
#endif
    :: else
    fi;
    if
    :: queued == 0 -> no_queue()
    :: else
    fi
  fi
} }

inline die(p) { d_step {
  deaths < DEAD && p <= PROCESSES -> deaths++;
  for (i : 1 .. WAITERS) {
    if
    :: PROCESS(i) == p && st[i] != GONE -> st[i] = DIED; woke[i] = 0; asks[i] = 0; timer[i] = 0
    :: PROCESS(i) == p && st[i] == GONE && gives[i] -> st[i] = DIED; gives[i] = 0; asks[i] = 0
    :: else
    fi
  }
  i = 0
} }

#if WAITERS == 3
#define ALL(p) (p(1) && p(2) && p(3))
#define ANY(p) (p(1) || p(2) || p(3))
#elif WAITERS == 4
#define ALL(p) (p(1) && p(2) && p(3) && p(4))
#define ANY(p) (p(1) || p(2) || p(3) || p(4))
#endif
#define quiet(g) (!asks[g] && !gives[g] && !msg[g] && !woke[g] && !(st[g] == WAITS && due(g)))
#define waits(g) (st[g] == WAITS)
#define clean(g) (st[g] != GONE || (ticket[g] == 0 && next != g && lock != g))
#define BOUND (POLL + (POLL + RESERVED) * losses + (TTL + RESERVED) * deaths)

/* Half a second goes by. */
inline tick() { d_step {
  ALL(quiet) && (ANY(waits) || lock != 0 || next != 0) ->
  is_clean = ALL(clean);
  assert(is_clean); /* S8: nothing is left of who gave up or left */
  is_passed_on = lock != 0 || next != 0 || !ANY(waits) || losses != 0 || deaths != 0;
  assert(is_passed_on); /* L2: a free lock passes on at once */
  unheld = (lock == 0 && ANY(waits) -> unheld + 1 : 0);
  is_bounded = unheld <= BOUND;
  assert(is_bounded); /* L3, L4: a dead waiter or a lost wake-up costs a bounded time */
  for (i : 1 .. PROCESSES) { unheard[i] = (unheard[i] < UNHEARD -> unheard[i] + 1 : UNHEARD) }
  for (i : 1 .. WAITERS) { timer[i] = (st[i] == WAITS && timer[i] > 0 -> timer[i] - 1 : timer[i]) }
  i = 0;
  if
  :: lock != 0 && st[lock] == DIED && left > 1 -> left--
  :: lock != 0 && st[lock] == DIED && left <= 1 -> lock = 0; left = 0
  :: else
  fi;
  if
  :: kept > 1 -> kept--
  :: kept == 1 -> kept = 0; next = 0
  :: else
  fi
} }

#ifdef REPLAY
#include "replay_queue.h"
#else

proctype waiter(byte g) {
  do
  :: send_ask(g)
  :: ask(g)
  :: deliver(g)
  :: lose(g)
  :: give_up(g)
  :: leave(g)
  :: release(g)
  :: atomic { (st[g] == GONE || st[g] == DIED) && !asks[g] && !gives[g] && !msg[g] -> break }
  od
}

active proctype time() {
end:
  do
  :: tick()
  od
}

#if DEAD > 0
active proctype killer() {
end:
  do
  :: die(1)
  :: die(2)
  od
}
#endif

init {
  byte g;
  d_step {
    for (g : 1 .. PROCESSES) { unheard[g] = UNHEARD }
  }
  atomic { for (g : 1 .. WAITERS) { run waiter(g) } }
}
#endif
