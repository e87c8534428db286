/* Several independent nodes keep one lock; a majority decides. Nodes lose their data one after another.
 *
 * docs/explanation/models.md says which code each action stands for, and what is left out. Time goes by in ticks. A grant asks the
 * nodes, in any order, undoes what it did not win, renews, loses its lease at its deadline, and ends; it lives once.
 *
 *   NODES 3 or 5   GRANTS n  how many; the first has the longer ttl    LOSSES n  how often a node forgets, or restarts
 *   DRIFT          the clock of a holder may be as slow as allowed     APART     an admission may not reach all nodes
 *   RENEWALS 0     nobody renews
 *   SHORT_KNOWN    the nodes have granted short leases, and no long one; a short one is asked for again after the loss
 *   NOBODY_LEAVES  grants last until their deadline
 *
 * Mistakes that must be convicted: NO_QUARANTINE, HALF_DECIDES, MINORITY_KEPT, QUARANTINE_BY_OWN_TTL,
 * NEW_BESIDE_MEMBERS, DEADLINE_FROM_THE_ANSWER, NO_ALLOWANCE, SILENCE_IS_CONSENT, VOTES_ACROSS_ADMISSIONS.
 */

#ifndef NODES
#define NODES 3
#endif
#ifndef GRANTS
#define GRANTS 2
#endif
#ifndef LOSSES
#define LOSSES 0
#endif
#ifndef RENEWALS
#define RENEWALS 1
#endif
#ifdef HALF_DECIDES
#define MAJORITY (NODES / 2)
#else
#define MAJORITY (NODES / 2 + 1)
#endif
#define MINORITY ((NODES - 1) / 2)

/* In ticks. A holder trusts its lease for one tick less than the nodes keep it; its clock may lose one meanwhile. */
#define LONG 4
#define SHORT 2
#define TTL(g) (g == 1 -> LONG : SHORT)
#ifdef NO_ALLOWANCE
#define TRUST(g) TTL(g)
#else
#define TRUST(g) (TTL(g) - 1)
#endif
#define UNKNOWN LONG /* QUARANTINE_UNKNOWN_MS: no ttl may be longer */

#define NS (NODES + 1)
#define GS (GRANTS + 1)

/* The nodes. */
byte owner[NS], left[NS];
bit member[NS];   /* the hash of admit.lua names the current server process, which every client may know */
byte quiet[NS];   /* for how long it gives no vote yet */
byte longest[NS]; /* the longest lease that it knows of */
byte sign[NS];    /* of the last admission that asked it or admitted it */
byte admissions;

/* The clients. */
#define IDLE 0
#define ASKS 1
#define TRUSTS 2
#define OVER 3
byte st[GS];
byte trust[GS];   /* until its deadline, counted from when it asked */
byte fresh[GS];   /* the same, if its renewal is granted */
bit renews[GS];
byte yes[GS], no[GS];
byte first[GS];   /* the sign of its first vote */
bit differ[GS];   /* not all of its votes have that */
bit late[GS];     /* a vote has a sign that was not known when it asked */
bit slow[GS], slow_fresh[GS], slips[GS]; /* its clock has lost a tick; loses the next one */

/* What is on its way to a node, in this order. */
#define AT(g, n) ((g - 1) * NODES + n - 1)
#define MAIL (GRANTS * NODES)
bit acquires[MAIL], extends[MAIL], rejoins[MAIL], releases[MAIL];
bit refused[MAIL]; /* it told that it does not keep the lease */
bit since[MAIL];   /* its sign has changed since it was asked for its vote */

byte losses;
byte hazy[NS], hazies; /* how long what a node forgot may be alive yet, and of how many nodes it may */
bit is_alone, is_clean;
byte n, told, members, most, known;

inline others_trust(g) {
  for (n : 1 .. GRANTS) {
    if
    :: n != g -> is_alone = (st[n] != TRUSTS); assert(is_alone) /* S1: mutual exclusion */
    :: else
    fi
  }
  n = 0
}

inline no_vote_counts(g) {
  yes[g] = 0; no[g] = 0; first[g] = 0; differ[g] = 0; late[g] = 0;
  for (n : 1 .. NODES) { since[AT(g, n)] = 0 }
  n = 0
}

inline release_all(g) {
  no_vote_counts(g);
  st[g] = OVER; trust[g] = 0; fresh[g] = 0; renews[g] = 0; slips[g] = 0; slow[g] = 0; slow_fresh[g] = 0;
  for (n : 1 .. NODES) {
    refused[AT(g, n)] = 0;
#ifdef MINORITY_KEPT
    releases[AT(g, n)] = (owner[n] != g)
#else
    releases[AT(g, n)] = 1
#endif
  }
  n = 0
}

/* redlock.py: all nodes at once; the validity counts from here. */
inline send_acquire(g) { d_step {
#ifdef SHORT_KNOWN
  st[g] == IDLE && (g == 1 || losses > 0) ->
#else
  st[g] == IDLE && (g <= 2 || st[g - 1] != IDLE) ->
#endif
#ifdef DEADLINE_FROM_THE_ANSWER
  trust[g] = LONG + 1; /* however long that takes */
#else
  trust[g] = TRUST(g);
#endif
  st[g] = ASKS;
  for (n : 1 .. NODES) { acquires[AT(g, n)] = 1 }
  n = 0
} }

/* acquire.lua, with a member hash. */
inline acquire(g, m) { d_step {
  acquires[AT(g, m)] -> acquires[AT(g, m)] = 0;
  if
  :: owner[m] == g -> left[m] = TTL(g); told = 1
#ifdef NO_QUARANTINE
  :: owner[m] == 0 ->
#else
  :: owner[m] == 0 && member[m] && quiet[m] == 0 ->
#endif
    owner[m] = g; left[m] = TTL(g); longest[m] = (longest[m] < TTL(g) -> TTL(g) : longest[m]);
    told = 1
  :: else
  fi;
  if
  :: st[g] == ASKS && told ->
    differ[g] = differ[g] || (yes[g] > 0 && first[g] != sign[m]);
    first[g] = (yes[g] == 0 -> sign[m] : first[g]);
    late[g] = late[g] || since[AT(g, m)];
    yes[g]++
  :: st[g] == ASKS && !told -> no[g]++
  :: else
  fi;
  told = 0
} }

inline win(g) { d_step {
#ifdef SILENCE_IS_CONSENT
  st[g] == ASKS && NODES - no[g] >= MAJORITY && yes[g] > 0 && trust[g] > 0 ->
#else
#ifdef VOTES_ACROSS_ADMISSIONS
  st[g] == ASKS && yes[g] >= MAJORITY && trust[g] > 0 ->
#else
  st[g] == ASKS && yes[g] >= MAJORITY && trust[g] > 0 && (!differ[g] || !late[g]) ->
#endif
#endif
  others_trust(g);
  no_vote_counts(g);
  st[g] = TRUSTS;
#ifdef DEADLINE_FROM_THE_ANSWER
  trust[g] = TRUST(g)
#endif
} }

/* It does not win, it leaves, or it is told that a majority does not keep its lease. */
inline give_up(g) { d_step {
  st[g] == ASKS || st[g] == TRUSTS -> release_all(g)
} }

inline send_renewal(g) { d_step {
  st[g] == TRUSTS && !renews[g] && trust[g] < TRUST(g) ->
  renews[g] = 1; fresh[g] = TRUST(g); slow_fresh[g] = 0; yes[g] = 0; no[g] = 0;
  for (n : 1 .. NODES) { extends[AT(g, n)] = 1; refused[AT(g, n)] = 0 }
  n = 0
} }

/* extend.lua */
inline extend(g, m) { d_step {
  extends[AT(g, m)] && !acquires[AT(g, m)] -> extends[AT(g, m)] = 0;
  if
  :: owner[m] == g -> left[m] = TTL(g); yes[g] = yes[g] + (renews[g] -> 1 : 0)
  :: else -> no[g] = no[g] + (renews[g] -> 1 : 0); refused[AT(g, m)] = renews[g]
  fi
} }

/* A majority renewed: the nodes that lost the lease get it back. */
inline renewed(g) { d_step {
  st[g] == TRUSTS && renews[g] && yes[g] >= MAJORITY && fresh[g] > 0 ->
  others_trust(g);
  trust[g] = fresh[g]; fresh[g] = 0; slow[g] = slow_fresh[g]; slow_fresh[g] = 0; renews[g] = 0; yes[g] = 0; no[g] = 0;
  for (n : 1 .. NODES) {
    rejoins[AT(g, n)] = rejoins[AT(g, n)] || refused[AT(g, n)];
    refused[AT(g, n)] = 0
  }
  n = 0
} }

/* A renewal that a majority did not answer is sent again. */
inline unanswered(g) { d_step {
  st[g] == TRUSTS && renews[g] && fresh[g] == 0 -> renews[g] = 0; yes[g] = 0; no[g] = 0
} }

/* rejoin.lua */
inline rejoin(g, m) { d_step {
  rejoins[AT(g, m)] && !extends[AT(g, m)] -> rejoins[AT(g, m)] = 0;
  if
  :: owner[m] == 0 ->
    owner[m] = g; left[m] = TTL(g); longest[m] = (longest[m] < TTL(g) -> TTL(g) : longest[m])
  :: else
  fi
} }

/* release.lua, behind whatever was sent before. */
inline release(g, m) { d_step {
  releases[AT(g, m)] && !acquires[AT(g, m)] && !extends[AT(g, m)] && !rejoins[AT(g, m)] -> releases[AT(g, m)] = 0;
  if
  :: owner[m] == g -> owner[m] = 0; left[m] = 0
  :: else
  fi
} }

/* _membership.py: g's guard, whether it asks for anything or not, admits m. With apart != 0 that node does not answer. */
inline admit(g, m, apart) { d_step {
  !member[m] && apart != m ->
  told = 0; members = 0; most = 0; admissions++;
  for (n : 1 .. NODES) {
    if
    :: n != apart ->
      told++; members = members + member[n];
      most = (longest[n] > most -> longest[n] : most);
#ifndef VOTES_ACROSS_ADMISSIONS
      sign[n] = admissions;
      for (known : 1 .. GRANTS) { since[AT(known, n)] = (st[known] == ASKS && acquires[AT(known, n)]) }
#endif
    :: else
    fi
  }
  n = 0; known = 0;
  if
#ifdef NEW_BESIDE_MEMBERS
  :: told == NODES && most == 0 -> skip
#else
  :: told == NODES && members == 0 && most == 0 -> skip /* new nodes: no quarantine */
#endif
  :: else ->
#ifdef QUARANTINE_BY_OWN_TTL
    most = TTL(g);
#else
    known = most;
    most = (st[g] != IDLE && TTL(g) > most -> TTL(g) : most); /* a guard knows what it has asked for */
#ifdef NEW_BESIDE_MEMBERS
    most = (members < MAJORITY && UNKNOWN > most -> UNKNOWN : most)
#else
    most = ((members < MAJORITY || known == 0) && UNKNOWN > most -> UNKNOWN : most)
#endif
#endif
  fi;
  member[m] = 1; quiet[m] = most; longest[m] = (longest[m] > most -> longest[m] : most);
  told = 0; members = 0; most = 0; known = 0
} }

/* A node loses all its data, or comes back as another process with data that may be too old. At most a minority at a
   time: the leases that others have forgotten have ended. */
inline forget(m, all) { d_step {
  losses < LOSSES && hazies < MINORITY && hazy[m] == 0 && (losses > 0 || m == 1) -> /* which is first is all one */
  losses++; hazy[m] = LONG; hazies++;
  owner[m] = 0; left[m] = 0; member[m] = 0; quiet[m] = 0;
  sign[m] = (all -> 0 : sign[m]);
  longest[m] = (all -> 0 : longest[m])
} }

inline slip(g) { d_step {
  st[g] != IDLE && st[g] != OVER && !slow[g] && !slips[g] && !(renews[g] && slow_fresh[g]) -> slips[g] = 1
} }

inline tick() { d_step {
  true ->
  for (n : 1 .. NODES) {
    if
    :: left[n] == 1 -> left[n] = 0; owner[n] = 0
    :: left[n] > 1 -> left[n]--
    :: else
    fi;
    quiet[n] = (quiet[n] > 0 -> quiet[n] - 1 : 0);
    hazies = hazies - (hazy[n] == 1 -> 1 : 0);
    hazy[n] = (hazy[n] > 0 -> hazy[n] - 1 : 0)
  }
  for (told : 1 .. GRANTS) {
    if
    :: st[told] == OVER ->
      for (n : 1 .. NODES) {
        if
        :: owner[n] == told ->
          is_clean = releases[AT(told, n)];
          assert(is_clean) /* S8: nothing is left of who gave up */
        :: else
        fi
      }
    :: st[told] == ASKS || st[told] == TRUSTS ->
      if
      :: slips[told] -> slips[told] = 0; slow[told] = 1; slow_fresh[told] = renews[told]
      :: else ->
        trust[told] = (trust[told] > 0 -> trust[told] - 1 : 0);
        fresh[told] = (fresh[told] > 0 -> fresh[told] - 1 : 0);
        if
        :: trust[told] == 0 -> release_all(told)
        :: else
        fi
      fi
    :: else
    fi
  }
  told = 0; n = 0
} }

#ifdef REPLAY
#include "replay_redlock.h"
#else

proctype grant(byte g) {
  byte m;
  do
  :: send_acquire(g)
  :: win(g)
#ifndef NOBODY_LEAVES
  :: give_up(g)
#endif
#if RENEWALS > 0
  :: send_renewal(g)
  :: renewed(g)
  :: unanswered(g)
#endif
#ifdef DRIFT
  :: slip(g)
#endif
  :: atomic { select(m : 1 .. NODES);
    if
    :: acquire(g, m)
    :: extend(g, m)
    :: rejoin(g, m)
    :: release(g, m)
    :: admit(g, m, 0)
#ifdef APART
    :: admit(g, m, 1)
    :: admit(g, m, 2)
    :: admit(g, m, 3)
#endif
    :: else -> skip
    fi;
    m = 0 }
  od
}

active proctype world() {
  byte m;
end:
  do
  :: tick()
#if LOSSES > 0
  :: atomic { select(m : 1 .. NODES);
    if
    :: forget(m, 1)
    :: forget(m, 0)
    :: else -> skip
    fi;
    m = 0 }
#endif
  od
}

init {
  byte k;
#ifdef SHORT_KNOWN
  d_step { for (k : 1 .. NODES) { member[k] = 1; longest[k] = SHORT } k = 0 }
#else
  d_step { for (k : 1 .. NODES) { member[k] = 1 } k = 0 }
#endif
  atomic { for (k : 1 .. GRANTS) { run grant(k) } k = 0 }
}
#endif
