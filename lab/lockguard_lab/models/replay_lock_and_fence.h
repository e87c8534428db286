/* Takes traces of the simulator through lock_and_fence.pml, one after another: each step has to be possible where the
 * one before has led, and no law may be broken. The file that TRACES names has a line for each trace, the number of
 * its steps, and then a line for each step: its action, a grant, a token, another number. */

c_decl {
\#include <stdio.h>
\#include <stdlib.h>
static int (*steps)[4], *begins, *far, traces;
static void tell(void) {
  int one;
  for (one = 0; one < traces; one++)
    printf("reached %d %d of %d\n", one, far[one], begins[one + 1] - begins[one]);
}
static void load(void) {
  FILE *file = fopen(getenv("TRACES"), "r");
  int all, one, step, at = 0, many;
  if (steps) return;
  if (!file || fscanf(file, "%d %d", &traces, &all) != 2) exit(9);
  steps = calloc(all + 1, sizeof *steps);
  begins = calloc(traces + 1, sizeof *begins);
  far = calloc(traces + 1, sizeof *far);
  for (one = 0; one < traces; one++) {
    if (fscanf(file, "%d", &many) != 1) exit(9);
    for (step = 0; step < many; step++, at++)
      if (fscanf(file, "%d %d %d %d", &steps[at][0], &steps[at][1], &steps[at][2], &steps[at][3]) != 4) exit(9);
    begins[one + 1] = at;
  }
  fclose(file);
  atexit(tell);
}
}

int op, a, t, f, at, which;

inline hears(g) { /* what the client was told, whenever that was */
  if
  :: ph[g] == ASKING && rep[g] != 0 -> tok[g] = rep[g]; rep[g] = 0; ph[g] = HAVE
  :: else
  fi
}

inline has_left(g) {
  if
  :: ph[g] != LEFT -> goes(g)
  :: else
  fi
}

inline replay_acquire(g, u) { d_step {
  lock == 0 || lock == g ->
  if
  :: ph[g] == IDLE -> ph[g] = ASKING
  :: else
  fi;
  rep[g] = 0 /* it asks again where it was not answered */
};
  acquire(g, u)
}

inline replay_settle(g, u) { d_step {
  lock == g ->
  ltok = u; floor = (floor > u -> floor : u);
  if
  :: ph[g] == HAVE && sq[g] == OUTRUN && u > sent[g] -> tok[g] = u; sq[g] = NONE
  :: else
  fi
} }

inline replay_seal(g, u, how) {
  seal(g);
  sq[g] == how && sent[g] == u
}

inline replay_refused(g) { d_step {
  !tx[g] && !IN_FORCE(g) -> assert(lost || !alive[g] || had[g]);
  has_left(g)
} }

inline replay_release(g, found) { d_step {
  found == (lock == g) -> has_left(g);
  rel[g] = 0;
  if
  :: lock == g -> dies(g); lock = 0
  :: else
  fi
} }

inline replay_close(g, u) { d_step {
  txs == 0 || NOTHING_TO_CLOSE(g, u) -> close_row(g, u);
  if
  :: ph[g] == LEFT -> cq[g] = OVER; shut[g] = 1
  :: else
  fi
} }

inline replay_break_fence(u) { d_step {
  txs == 0 && u > ft -> ft = u; fg = OPERATOR; fopen = 0;
  for (h : 1 .. GRANTS) { had[h] = had[h] || rep[h] != 0 || tok[h] != 0 }
  h = 0
} }

inline replay_break_lock(u) { d_step {
  u >= floor ->
  for (h : 1 .. GRANTS) { had[h] = had[h] || rep[h] != 0 || tok[h] != 0 }
  h = 0;
  floor = u;
  if
  :: lock != 0 -> dies(lock); lock = 0
  :: else
  fi
} }

inline replaced(g, u, w) { d_step {
  lost = 1;
  if
  :: lock != 0 -> dies(lock)
  :: else
  fi;
  lock = g; ltok = u; floor = w
} }

active proctype replay() {
  byte h;
  c_code { load(); };
  do
  :: c_expr { now.which + 1 < traces } -> which++
  :: break
  od;
  c_code { now.at = begins[now.which]; };
  do
  :: c_expr { now.at < begins[now.which + 1] } ->
    c_code {
      now.op = steps[now.at][0]; now.a = steps[now.at][1]; now.t = steps[now.at][2]; now.f = steps[now.at][3];
    };
    if
    :: op == 1 -> replay_acquire(a, t)
    :: op == 2 -> lock != a
    :: op == 3 -> lock == a; expire()
    :: op == 4 -> replaced(a, t, f)
    :: op == 5 -> lock == a && (alive[a] || lost)
    :: op == 6 -> lock != a
    :: op == 7 -> replay_settle(a, t)
    :: op == 8 -> d_step { hears(a); skip }; ph[a] == HAVE && tok[a] == t; send_seal(a)
    :: op == 9 -> replay_seal(a, t, OVER)
    :: op == 10 -> replay_seal(a, t, OUTRUN)
    :: op == 11 -> enter(a)
    :: op == 12 -> tok[a] == t; present(a)
    :: op == 13 -> replay_refused(a)
    :: op == 14 -> commit(a)
    :: op == 15 -> abort(a)
    :: op == 16 -> d_step { has_left(a) }
    :: op == 17 -> replay_release(a, f)
    :: op == 18 -> replay_close(a, t)
    :: op == 19 -> replay_break_fence(t)
    :: op == 20 -> replay_break_lock(t)
    fi;
    at++;
    c_code { if (now.at - begins[now.which] > far[now.which]) far[now.which] = now.at - begins[now.which]; }
  :: c_expr { now.at >= begins[now.which + 1] } -> break
  od
}
