/* One block of ChaCha with 8 rounds: D. J. Bernstein, "ChaCha, a variant of Salsa20", 2008. Words are placed as
 * in RFC 8439, with a counter of 64 bits and no nonce. */
#ifndef PICOSTEP_CHACHA_H
#define PICOSTEP_CHACHA_H
#include <stdint.h>

#define PS_TURN(v, n) ((v) << (n) | (v) >> (32 - (n)))
#define PS_QUARTER(a, b, c, d)                 \
    a += b; d = PS_TURN(d ^ a, 16);            \
    c += d; b = PS_TURN(b ^ c, 12);            \
    a += b; d = PS_TURN(d ^ a, 8);             \
    c += d; b = PS_TURN(b ^ c, 7);

static inline void ps_chacha8(const uint32_t key[8], uint64_t counter, uint32_t out[16]) {
    const uint32_t in[16] = {
        0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, key[0], key[1], key[2], key[3],
        key[4], key[5], key[6], key[7], (uint32_t)counter, (uint32_t)(counter >> 32), 0, 0};
    uint32_t x[16];
    int i;
    for (i = 0; i < 16; i++) x[i] = in[i];
    for (i = 0; i < 4; i++) {
        PS_QUARTER(x[0], x[4], x[8], x[12])
        PS_QUARTER(x[1], x[5], x[9], x[13])
        PS_QUARTER(x[2], x[6], x[10], x[14])
        PS_QUARTER(x[3], x[7], x[11], x[15])
        PS_QUARTER(x[0], x[5], x[10], x[15])
        PS_QUARTER(x[1], x[6], x[11], x[12])
        PS_QUARTER(x[2], x[7], x[8], x[13])
        PS_QUARTER(x[3], x[4], x[9], x[14])
    }
    for (i = 0; i < 16; i++) out[i] = x[i] + in[i];
}
#endif
